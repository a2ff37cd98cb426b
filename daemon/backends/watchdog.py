"""Notices a worker that has work and gets nowhere, though its process lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from contract.faults import Fault
from daemon.backends.base import BackendStats

_LOOKS = 4
"""In a row without progress; their number counts, so that a daemon that itself was stopped blames nobody."""


async def until_stuck(
    has_work: Callable[[], bool], stats: Callable[[], Awaitable[BackendStats]], patience_s: float
) -> None:
    """Return when there was work for about ``patience_s`` and ``stats`` did not change or did not come."""
    idle_looks, last = 0, None
    while idle_looks < _LOOKS:
        await asyncio.sleep(patience_s / _LOOKS)
        seen = await _progress(stats, patience_s) if has_work() else None
        if not has_work() or (seen is not None and seen != last):
            idle_looks, last = 0, seen
        else:
            idle_looks += 1


async def _progress(stats: Callable[[], Awaitable[BackendStats]], patience_s: float) -> BackendStats | None:
    """``None`` from a worker that does not answer."""
    try:
        found = await asyncio.wait_for(stats(), patience_s)
    except (Fault, TimeoutError):
        return None
    return msgspec.structs.replace(found, memory_bytes=0)
