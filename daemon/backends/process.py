"""One worker process as the operating system sees it: start, output, how it ended.

Knows nothing of frames; ``worker`` talks to it through the socket that ``start`` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections import deque
from pathlib import Path

from contract.faults import Fault, FaultKind
from daemon.backends.base import ModelSpec

_KEPT_LINES = 50
_LINE_BYTES = 8192
_REAP_S = 0.5
"""A process whose connection is gone is given this long to be gone itself."""
_DRAIN_S = 0.2
"""Its last output may take this long to arrive; a grandchild may hold the pipe open for ever."""
_LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_LINE_END = re.compile(rb"[\r\n]+")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_log = logging.getLogger("mindport.worker")


class WorkerProcess:
    """A running or ended worker."""

    def __init__(self, process: asyncio.subprocess.Process, title: str) -> None:
        self._process = process
        self._title = title
        self._killed = False
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._output = asyncio.get_running_loop().create_task(self._forward_output())

    @classmethod
    async def start(cls, spec: ModelSpec, interpreter: str | None) -> tuple[WorkerProcess, socket.socket]:
        """A new process in its own process group, and our end of its connection. Raises ``Fault``."""
        ours, theirs = socket.socketpair()
        title = f"{spec.name}@{spec.version}"
        argv = [interpreter or sys.executable, "-P", "-m", "daemon.backends.worker_main"]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                title,
                str(theirs.fileno()),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=_environment(spec.threads),
            )
        except OSError as error:
            ours.close()
            raise Fault(
                FaultKind.START_FAILED, f"the worker of {title} cannot be started: {error}"
            ) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, title), ours

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """At once, with every process it started."""
        if self._process.returncode is None:
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wait_or_kill(self, grace_s: float) -> None:
        """Return when the process is gone, after ``grace_s`` by force."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), grace_s)
        if self._process.returncode is None:
            _log.warning("%s: still there after %g s, killing it", self._title, grace_s)
            self.kill()
            await self._process.wait()
        await self._finish_output()

    async def ending(self) -> str:
        """How it ended, in words. For a process whose connection is already gone."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _REAP_S)
        if self._process.returncode is None:
            self.kill()
        code = await self._process.wait()
        await self._finish_output()
        if code >= 0:
            return f"exit code {code}"
        if self._killed:
            return "it did not end by itself and was killed"
        words = f"killed by signal {-code} ({_signal_name(-code)})"
        return words + ", often for lack of memory" if code == -signal.SIGKILL else words

    def exit_details(self) -> dict[str, int]:
        code = self._process.returncode
        if code is None:
            return {}
        return {"exit_code": code} if code >= 0 else {"signal": -code}

    async def _finish_output(self) -> None:
        await asyncio.wait([self._output], timeout=_DRAIN_S)
        if not self._output.done():
            self._output.cancel()
            await asyncio.wait([self._output])

    async def _forward_output(self) -> None:
        """To the daemon's log, line by line."""
        stream = self._process.stdout
        rest = b""
        while stream is not None and (chunk := await stream.read(1 << 16)):
            *lines, rest = _LINE_END.split(rest + chunk)
            for line in lines:
                self._forward_line(line)
            if len(rest) > _LINE_BYTES:
                self._forward_line(rest)
                rest = b""
        self._forward_line(rest)

    def _forward_line(self, line: bytes) -> None:
        text = line[:_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if not text:
            return
        self.last_lines.append(text)
        level = logging.INFO
        if (match := _LEVEL.match(text)) is not None:
            level = logging.getLevelNamesMapping()[match[1]]
            text = text[match.end() :]
        _log.log(level, "%s: %s", self._title, text, extra={"model": self._title})


def _environment(threads: int) -> dict[str, str]:
    environment = dict(os.environ)
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(max(1, threads))))
    root = str(Path(__file__).resolve().parents[2])
    others = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = root + os.pathsep + others if others else root
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
