"""The state directory: how ``daemon stop``, ``status``, ``ps`` and ``logs`` find a running daemon.

A running daemon holds a lock on ``lock`` for its whole life, so a stale file is never taken for a daemon.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from contract.faults import Fault, FaultKind


class StateDirectory:
    """Files of one daemon: ``lock``, ``daemon.json`` and ``daemon.log``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = path / "daemon.log"
        self._lock_path = path / "lock"
        self._info_path = path / "daemon.json"
        self._lock: IO[str] | None = None

    def create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            message = f"state directory {self.path} cannot be made: {error.strerror}"
            raise Fault(FaultKind.INVALID_CONFIG, message, "choose another with --state-dir") from None

    def acquire(self) -> None:
        """Take the lock for the life of this process. Raises ``Fault`` when a daemon has it."""
        self.create()
        lock = self._lock_path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            pid = self.read().get("pid", "unknown")
            message = f"a daemon is running already (pid {pid}, state directory {self.path})"
            hint = "stop it with: daemon stop; or start another with other ports and --state-dir"
            raise Fault(FaultKind.ALREADY_EXISTS, message, hint) from None
        self._lock = lock
        self._info_path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back, once everything has stopped."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def running(self) -> bool:
        """Whether a live process holds the lock."""
        try:
            with self._lock_path.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def write(self, info: Mapping[str, Any]) -> None:
        """Replace ``daemon.json`` in one step."""
        temporary = self._info_path.with_suffix(".new")
        temporary.write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", "utf-8")
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
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True
