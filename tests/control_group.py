"""A real control group with a memory limit, where the machine lets one be made."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class ControlGroup:
    def __init__(self, folder: Path, limit: str) -> None:
        self._folder = folder
        self._limit = limit

    def take(self, pid: int, limit_bytes: int) -> None:
        """From now on the process may allocate so much more, not counting what it has."""
        (self._folder / self._limit).write_text(str(limit_bytes), "ascii")
        (self._folder / "cgroup.procs").write_text(str(pid), "ascii")


@contextlib.contextmanager
def control_group() -> Iterator[ControlGroup]:
    """A child of this process's own group. Skips the test where that is not allowed."""
    folder, limit = _place()
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not os.access(folder / limit, os.W_OK):
            pytest.skip(f"{folder} has no {limit}: the memory controller is not delegated")
        yield ControlGroup(folder, limit)
    finally:
        _remove(folder)


def _place() -> tuple[Path, str]:
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines()]
    name = f"mindport-test-{os.getpid()}"
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{path}") / name, "memory.limit_in_bytes"
    path = next((path for _, controllers, path in lines if not controllers), "/")
    return Path(f"/sys/fs/cgroup{path}") / name, "memory.max"


def _remove(folder: Path) -> None:
    """The group is busy until the kernel has buried what was in it."""
    deadline = time.monotonic() + 5
    while folder.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            folder.rmdir()
        time.sleep(0.02)
