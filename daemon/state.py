"""The state directory: how ``daemon stop``, ``status``, ``ps`` and ``logs`` find a running daemon.

A running daemon holds a lock on ``lock`` until its process ends, so a stale file is never taken for a daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from contract.faults import Fault, FaultKind

_LOCK_PATIENCE_S = 0.5
"""Whoever asks whether a daemon runs holds the lock for an instant: that is no daemon yet."""


class StateDirectory:
    """Files of one daemon: ``lock``, ``daemon.json``, ``daemon.log`` and, at times, ``control.sock``."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log_path = self.path / "daemon.log"
        self.socket_path = self.path / "control.sock"
        self._lock_path = self.path / "lock"
        self._info_path = self.path / "daemon.json"
        self._lock: int | None = None

    def create(self) -> None:
        """Make the directory, private to this user. Raises ``Fault`` if it cannot be written to."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            message = f"state directory {self.path} cannot be made: {error.strerror}"
            raise Fault(FaultKind.INVALID_CONFIG, message, "choose another with --state-dir") from None
        with self.writing():
            os.close(os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns a file that cannot be written into a ``Fault``."""
        try:
            yield
        except OSError as error:
            message = f"state directory {self.path} cannot be written to: {error.strerror}"
            hint = "free some space, or choose another with --state-dir"
            raise Fault(FaultKind.INVALID_CONFIG, message, hint) from None

    def acquire(self) -> None:
        """Take the lock for the life of this process. Raises ``Fault`` when a daemon has it."""
        self.create()
        with self.writing():
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while not _locks(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(lock)
                raise self._running_already()
            time.sleep(0.02)
        self._lock = lock
        with self.writing():
            self._info_path.unlink(missing_ok=True)

    def refuse_second(self) -> None:
        """Raises ``Fault`` if a daemon is running here."""
        if self.running():
            raise self._running_already()

    def release(self) -> None:
        """Give the lock back before the process ends."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def running(self) -> bool:
        """Whether a live process holds the lock."""
        try:
            lock = os.open(self._lock_path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _locks(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def write(self, info: Mapping[str, Any]) -> None:
        """Replace ``daemon.json``, which only this user may read, in one step. Raises ``Fault``."""
        temporary = self._info_path.with_suffix(".new")
        with self.writing():
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(json.dumps(info, indent=2) + "\n")
            temporary.replace(self._info_path)

    def read(self) -> dict[str, Any]:
        """What the daemon wrote about itself; empty when there is nothing to read."""
        try:
            info = json.loads(self._info_path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return info if isinstance(info, dict) else {}

    def require_running(self) -> dict[str, Any]:
        """``daemon.json`` of a running daemon. Raises ``Fault`` NOT_FOUND."""
        if not self.running():
            raise Fault(
                FaultKind.NOT_FOUND,
                f"no daemon is running (state directory {self.path})",
                "start it with: daemon start; for a daemon elsewhere give --state-dir or --management-port",
            )
        return self.read()

    def signal(self, number: int) -> None:
        """Send a signal to the running daemon. Raises ``Fault`` when there is none."""
        pid = self.require_running().get("pid")
        if not isinstance(pid, int):
            raise Fault(FaultKind.NOT_READY, "the daemon has just begun to start", "try again in a moment")
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            message = f"the daemon (pid {pid}) belongs to another user"
            raise Fault(FaultKind.FORBIDDEN, message, "stop it as that user") from None

    def wait_stopped(self, timeout_s: float) -> bool:
        """Wait until no process holds the lock."""
        deadline = time.monotonic() + timeout_s
        while self.running():
            if not time.monotonic() < deadline:
                return False
            time.sleep(0.05)
        return True

    def _running_already(self) -> Fault:
        pid = self.read().get("pid", "unknown")
        message = f"a daemon is running already (pid {pid}, state directory {self.path})"
        hint = "stop it with: daemon stop; or start another with other ports and --state-dir"
        return Fault(FaultKind.ALREADY_EXISTS, message, hint)


def _locks(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
