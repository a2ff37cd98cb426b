"""How long to wait before a dead worker is started again: at once, then 1, 2, 4 ... seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from contract.faults import Fault, FaultKind

_PERMANENT = frozenset(
    {
        FaultKind.INVALID_MODEL,
        FaultKind.INVALID_CONFIG,
        FaultKind.UNTRUSTED_CODE,
        FaultKind.VERIFICATION_FAILED,
        FaultKind.UNSUPPORTED,
    }
)


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """Restarting never gives up on a crash; it does on a fault that another try cannot mend."""

    longest_s: float = 30.0
    healthy_s: float = 180.0
    """A worker that ran this long begins anew with no delay."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def delay_s(self, failures: int) -> float:
        """Before the next start, after so many failures in a row."""
        return 0.0 if failures <= 1 else min(self.longest_s, 2.0 ** min(failures - 2, 16))

    def is_permanent(self, fault: Fault) -> bool:
        return fault.kind in _PERMANENT
