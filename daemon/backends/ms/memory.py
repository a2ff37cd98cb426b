"""How much memory there is, and how much of it becomes KV cache."""

from __future__ import annotations

import resource
from pathlib import Path

from contract.faults import Fault, FaultKind

_SHARE = 0.4
"""Of what the weights leave, for KV cache, when nobody says how much."""
_MOST = 0.8
"""The same, when less would not hold one sequence of full length."""


def available_bytes(root: Path = Path("/")) -> int:
    """What this process may still allocate: the least of machine, control group and limits."""
    limits = [_machine(root), _cgroup_v2(root), _cgroup_v1(root), _address_space(root)]
    return max(0, min((limit for limit in limits if limit is not None), default=0))


def plan_blocks(
    *, available: int, weight_bytes: int, block_bytes: int, wanted_blocks: int, least_blocks: int
) -> int:
    """KV blocks for a model whose weights are not loaded yet.

    ``wanted_blocks``: enough for all sequences at full length; ``least_blocks``: for one. Raises ``Fault``.
    """
    left = available - weight_bytes
    blocks = min(wanted_blocks, int(left * _SHARE) // block_bytes)
    if blocks < least_blocks <= int(left * _MOST) // block_bytes:
        return least_blocks
    if blocks < least_blocks:
        message = (
            f"the weights need {_mib(weight_bytes)} and one sequence of full length needs "
            f"{_mib(least_blocks * block_bytes)} of KV cache; {_mib(available)} are available"
        )
        hint = "free memory, set the option context_len lower, or use a smaller dtype"
        details = {
            "available_bytes": available,
            "weight_bytes": weight_bytes,
            "kv_bytes": least_blocks * block_bytes,
        }
        raise Fault(FaultKind.OUT_OF_MEMORY, message, hint, details)
    return blocks


def _mib(amount: int) -> str:
    return f"{amount / 2**20:,.0f} MiB"


def _machine(root: Path) -> int | None:
    value = _table(root / "proc/meminfo").get("MemAvailable:")
    return value * 1024 if value is not None else None


def _cgroup_v2(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup"
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    return _headroom(limit, used, _table(folder / "memory.stat").get("inactive_file", 0))


def _cgroup_v1(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup/memory"
    limit = _number(folder / "memory.limit_in_bytes")
    used = _number(folder / "memory.usage_in_bytes")
    return _headroom(limit, used, _table(folder / "memory.stat").get("total_inactive_file", 0))


def _headroom(limit: int | None, used: int | None, reclaimable: int) -> int | None:
    return limit - used + reclaimable if limit is not None and used is not None else None


def _address_space(root: Path) -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _table(root / "proc/self/status").get("VmSize:")
    if limit == resource.RLIM_INFINITY or used is None:
        return None
    return limit - used * 1024


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
