"""Who may go to the engine now, who waits, and who is turned away: one queue per loaded version.

The urgent go first, then whoever came first. Nothing here knows what a request is.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass

from contract.faults import Fault, FaultKind


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """Sizes of a queue."""

    max_running: int
    """Requests in the engine at a time."""
    max_waiting: int


class Admission:
    """The queue of one loaded version."""

    def __init__(self, limits: QueueLimits, model: str) -> None:
        self._limits = limits
        self._model = model
        self._running = 0
        self._arrivals = itertools.count()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiting = 0

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return self._waiting

    def enter(self, priority: int) -> Ticket:
        """Join the queue. Raises ``Fault`` OVERLOADED if it is full. Whoever enters must ``leave``."""
        ticket = Ticket(self)
        if self._running < self._limits.max_running and not self._waiting:
            self._running += 1
            ticket.turn.set_result(None)
            return ticket
        if self._waiting >= self._limits.max_waiting:
            message = (
                f"model {self._model} is at its limit: {self._running} requests run, {self._waiting} wait"
            )
            details = {"retry_after_s": 1, "running": self._running, "waiting": self._waiting}
            raise Fault(FaultKind.OVERLOADED, message, "try again later", details)
        heapq.heappush(self._queue, (priority, next(self._arrivals), ticket.turn))
        self._waiting += 1
        return ticket

    def release(self, *, had_turn: bool) -> None:
        """For ``Ticket`` only: someone left, from the engine or from the queue."""
        if had_turn:
            self._running -= 1
        else:
            self._waiting -= 1
        while self._queue and self._running < self._limits.max_running:
            _, _, turn = heapq.heappop(self._queue)
            if not turn.done():
                self._waiting -= 1
                self._running += 1
                turn.set_result(None)


class Ticket:
    """A place in the queue, then in the engine."""

    def __init__(self, admission: Admission) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._admission = admission
        self._left = False

    async def wait(self) -> None:
        """Until it is this one's turn."""
        await self.turn

    def leave(self) -> None:
        """Give the place back, wherever it is. Once is enough, more does nothing."""
        if self._left:
            return
        self._left = True
        had_turn = self.turn.done() and not self.turn.cancelled()
        self.turn.cancel()
        self._admission.release(had_turn=had_turn)
