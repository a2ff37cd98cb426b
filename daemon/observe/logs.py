"""The daemon's log: one JSON object a line on the standard library's logging."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
from pathlib import Path
from typing import Any, TextIO

_REQUESTS = "mindport.requests"
STDOUT, STDERR = 1, 2


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, then the fields a caller attached as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
        return text.encode(errors="backslashreplace").decode()


class LogFile:
    """The file that this process's standard output and error already go to.

    When it has grown large it is moved aside, once, so that a daemon that runs for years fills no disk.
    """

    def __init__(self, path: Path, kept_bytes: int) -> None:
        self._path = path
        self._kept_bytes = kept_bytes
        self._size = path.stat().st_size

    def write(self, text: str) -> None:
        """A full disk costs lines, not the daemon."""
        data = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            os.write(STDERR, data)
            self._size += len(data)
            if self._size > self._kept_bytes:
                self._move_aside()

    def flush(self) -> None:
        """Nothing is held back."""

    def _move_aside(self) -> None:
        self._size = 0
        self._path.replace(self._path.with_suffix(".log.1"))
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in (STDOUT, STDERR):
            os.dup2(fresh, descriptor)
        os.close(fresh)


def configure(stream: TextIO | LogFile, level: str = "INFO", *, as_json: bool = True) -> logging.Handler:
    """Send the daemon's log to a stream; the answer can be removed from the root logger again."""
    handler: logging.StreamHandler[TextIO | LogFile] = logging.StreamHandler(stream)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    return handler


class RequestLog:
    """Writes one line a request; without the prompt unless told otherwise."""

    def __init__(self, *, with_prompts: bool = False) -> None:
        self._with_prompts = with_prompts
        self._logger = logging.getLogger(_REQUESTS)

    def __call__(self, line: dict[str, Any]) -> None:
        if not self._logger.isEnabledFor(logging.INFO):
            return
        if not self._with_prompts:
            line = {key: value for key, value in line.items() if key != "prompt"}
        self._logger.info("request %s", line.get("outcome", ""), extra={"fields": line})
