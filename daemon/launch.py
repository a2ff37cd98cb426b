"""Starts a detached daemon and waits until it is ready or has failed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, Any

from contract.faults import Fault, FaultKind
from daemon.settings import Settings
from daemon.state import StateDirectory

LOG_KEPT_BYTES = 20 << 20
TAIL_BLOCK_BYTES = 1 << 16
ABANDON_S = 10.0
"""What a start that is given up may take to clean up."""


def launch(settings: Settings, show: Callable[[list[dict[str, Any]]], None]) -> dict[str, Any]:
    """Start a daemon in a session of its own.

    Parameters
    ----------
    show: called with the loading models, each ``{"name", "version", "state", "progress", "text"}``.

    Returns
    -------
    The daemon's addresses, pid and log.

    Raises
    ------
    Fault: the reason why it did not start.
    """
    state = StateDirectory(settings.state_path)
    state.create()
    state.refuse_second()
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as messages, _all_signals_interrupt():
        process = _spawn(state, write_fd)
        try:
            _send(process, settings)
            return _wait(messages, show, state)
        except KeyboardInterrupt:
            _abandon(process)
            raise


def _spawn(state: StateDirectory, write_fd: int) -> subprocess.Popen[bytes]:
    """The daemon's process, which alone holds ``write_fd`` from here on. Raises ``Fault``."""
    try:
        with state.writing():
            _rotate(state)
            log = state.log_path.open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "daemon.main", str(write_fd)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write_fd,),
                start_new_session=True,
            )
    except OSError as error:
        message = f"the daemon's process cannot be started: {error.strerror}"
        raise Fault(FaultKind.START_FAILED, message, "see the limits on processes and memory") from None
    finally:
        os.close(write_fd)


@contextlib.contextmanager
def _all_signals_interrupt() -> Iterator[None]:
    """Whoever ends ``daemon start`` while it waits ends the start, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """Nothing is left of a start that was given up."""
    process.terminate()
    try:
        process.wait(ABANDON_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _send(process: subprocess.Popen[bytes], settings: Settings) -> None:
    stdin = process.stdin
    if stdin is None:
        raise Fault(FaultKind.INTERNAL, "the daemon's standard input is not a pipe")
    absolute = settings.model_copy(update={"repository": [path.absolute() for path in settings.repository]})
    # A process that is already dead is noticed when it says nothing.
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(absolute.model_dump_json().encode())


def _wait(
    messages: IO[bytes], show: Callable[[list[dict[str, Any]]], None], state: StateDirectory
) -> dict[str, Any]:
    for line in messages:
        message = json.loads(line)
        if "progress" in message:
            show(message["progress"])
        elif "fault" in message:
            raise Fault.from_dict(message["fault"])
        else:
            ready: dict[str, Any] = message["ready"]
            return ready
    tail = "".join(f"\n  {line.rstrip()}" for line in last_lines(state, 5))
    message = "the daemon's process ended before it was ready" + (f"; its log ends:{tail}" if tail else "")
    raise Fault(FaultKind.START_FAILED, message, f"the whole log: {state.log_path}")


def last_lines(state: StateDirectory, count: int) -> list[str]:
    """The end of the daemon's log; empty when there is none."""
    try:
        with state.log_path.open("rb") as log:
            return [line.decode("utf-8", "replace") for line in _tail(log, count)]
    except OSError:
        return []


def _tail(log: IO[bytes], count: int) -> list[bytes]:
    """Read backwards, a block at a time, until there are enough lines."""
    position, data = log.seek(0, os.SEEK_END), b""
    while position and data.count(b"\n") <= count:
        size = min(position, TAIL_BLOCK_BYTES)
        position = log.seek(position - size)
        data = log.read(size) + data
    lines = data.splitlines(keepends=True)
    return lines[max(0, len(lines) - count) :]


def _rotate(state: StateDirectory) -> None:
    try:
        if state.log_path.stat().st_size > LOG_KEPT_BYTES:
            state.log_path.replace(state.log_path.with_suffix(".log.1"))
    except FileNotFoundError:
        return
