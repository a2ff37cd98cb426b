"""How much memory this process may still take: the least of the machine, its control groups and its limits.

Linux tells it in files; ``root`` is where they are looked for.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that may still be taken, and what allows no more."""

    bytes: int
    bound: str
    """``this machine``, ``the control group /a/b``, ``ulimit -v`` ..."""
    shared: bool = True
    """With other processes."""
    virtual: bool = False
    """Addresses count, whether there is memory behind them or not."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What is spoken for besides what the caller asks about."""

    own: int = 0
    """This process will still take that much."""
    own_virtual: int = 0
    """The same in addresses."""
    others: int = 0
    """Other processes will."""

    def of(self, room: Room) -> int:
        return (self.own_virtual if room.virtual else self.own) + (self.others if room.shared else 0)


@dataclass(frozen=True, slots=True)
class _Generation:
    """The names of a generation of control groups; the first two limits and uses that exist count."""

    mount: str
    controllers: str
    """Second column of /proc/self/cgroup."""
    limits: tuple[str, ...]
    used: str
    reclaimable: str


_GENERATIONS = (
    _Generation("sys/fs/cgroup", "", ("memory.max", "memory.high"), "memory.current", "inactive_file"),
    _Generation(
        "sys/fs/cgroup/unified", "", ("memory.max", "memory.high"), "memory.current", "inactive_file"
    ),
    _Generation(
        "sys/fs/cgroup/memory",
        "memory",
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
_ULIMITS = (
    ("ulimit -v", resource.RLIMIT_AS, "VmSize:", True),
    ("ulimit -d", resource.RLIMIT_DATA, "VmData:", True),
    # Linux does not enforce this one; whoever sets it means it.
    ("ulimit -m", resource.RLIMIT_RSS, "VmRSS:", False),
)


def available_memory(root: Path = Path("/"), overhead: Overhead = Overhead()) -> Room:
    """What this process may still allocate when ``overhead`` is taken off."""
    rooms = [*_machine(root), *_control_groups(root), *_limits(root)]
    left = [replace(room, bytes=max(0, room.bytes - overhead.of(room))) for room in rooms]
    return min(left, key=lambda room: room.bytes, default=Room(0, "this machine, which does not tell"))


def total_memory(root: Path = Path("/")) -> int:
    """Of the machine."""
    return _table(root / "proc/meminfo").get("MemTotal:", 0) * 1024


def resident_bytes(pid: int | None = None) -> int:
    """Of this process or another; 0 when it is gone."""
    try:
        pages = Path("/proc", str(pid or "self"), "statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def _machine(root: Path) -> Iterator[Room]:
    value = _table(root / "proc/meminfo").get("MemAvailable:")
    if value is not None:
        yield Room(value * 1024, "this machine")


def _control_groups(root: Path) -> Iterator[Room]:
    """Every group this process is in, with those around it: each may have a limit."""
    for generation in _GENERATIONS:
        mount = root / generation.mount
        own = _own_group(root, generation.controllers)
        for group in (own, *own.parents):
            # In a container, the path may be the host's, which is not visible here: its root is our group.
            folder = mount / group.relative_to("/")
            limit = min(
                (n for name in generation.limits if (n := _number(folder / name)) is not None), default=None
            )
            used = _number(folder / generation.used)
            if limit is not None and used is not None:
                reclaimable = _table(folder / "memory.stat").get(generation.reclaimable, 0)
                yield Room(limit - used + reclaimable, f"the control group {group}")


def _own_group(root: Path, controllers: str) -> PurePosixPath:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controllers in names.split(",") and path.startswith("/") and ".." not in path:
            return PurePosixPath(path)
    return PurePosixPath("/")


def _limits(root: Path) -> Iterator[Room]:
    used = _table(root / "proc/self/status")
    for name, number, line, virtual in _ULIMITS:
        limit, _ = resource.getrlimit(number)
        if limit != resource.RLIM_INFINITY:
            yield Room(limit - used.get(line, 0) * 1024, name, shared=False, virtual=virtual)


def _number(path: Path) -> int | None:
    """``None`` for no file and for ``max``."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """First column to second, where that is a number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
