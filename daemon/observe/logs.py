"""The daemon's log: one JSON object a line on the standard library's logging."""

from __future__ import annotations

import datetime as dt
import json
import logging
from typing import Any, TextIO

_REQUESTS = "mindport.requests"


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


def configure(stream: TextIO, level: str = "INFO", *, as_json: bool = True) -> logging.Handler:
    """Send the daemon's log to a stream; the answer can be removed from the root logger again."""
    handler = logging.StreamHandler(stream)
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
