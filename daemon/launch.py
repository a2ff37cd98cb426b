"""Starts a detached daemon and waits until it is ready or has failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any

from contract.faults import Fault, FaultKind
from daemon.settings import Settings
from daemon.state import StateDirectory

LOG_KEPT_BYTES = 20 << 20


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
    if state.running():
        state.acquire()
    _rotate(state)
    read_fd, write_fd = os.pipe()
    with state.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon.main", str(write_fd)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(write_fd,),
            start_new_session=True,
        )
    os.close(write_fd)
    _send(process, settings)
    with os.fdopen(read_fd, "rb") as messages:
        try:
            return _wait(messages, show, state)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def _send(process: subprocess.Popen[bytes], settings: Settings) -> None:
    stdin = process.stdin
    if stdin is None:
        raise Fault(FaultKind.INTERNAL, "the daemon's standard input is not a pipe")
    absolute = settings.model_copy(update={"repository": [path.absolute() for path in settings.repository]})
    stdin.write(absolute.model_dump_json().encode())
    stdin.close()


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
    tail = "".join(last_lines(state, 5))
    raise Fault(
        FaultKind.START_FAILED,
        f"the daemon's process ended before it was ready; its log ends:\n{tail}",
        f"the whole log: {state.log_path}",
    )


def last_lines(state: StateDirectory, count: int) -> list[str]:
    """The end of the daemon's log; empty when there is none."""
    try:
        with state.log_path.open("r", encoding="utf-8", errors="replace") as log:
            log.seek(max(0, state.log_path.stat().st_size - 512 * count - 4096))
            return log.readlines()[-count:]
    except OSError:
        return []


def _rotate(state: StateDirectory) -> None:
    try:
        if state.log_path.stat().st_size > LOG_KEPT_BYTES:
            state.log_path.replace(state.log_path.with_suffix(".log.1"))
    except FileNotFoundError:
        return
