"""Who may go to the engine now, who waits, and who is turned away: one queue per loaded version.

Turns are ``turns``'. Nothing here knows what a request is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass

from contract.faults import Fault, FaultKind
from daemon.backends.turns import Turns

_EXPRESS = 2
"""The urgent go to the engine, which displaces others for them, until it has this many times its requests."""


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
        self._turns = Turns()
        self._arrivals = itertools.count()
        self._waiting: dict[int, Ticket] = {}
        self._running: dict[int, Ticket] = {}
        self._held: Counter[str] = Counter()
        """Running requests of each caller."""

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, priority: int, caller: str = "") -> Ticket:
        """Join the queue. Whoever enters must ``leave``.

        Raises ``Fault`` OVERLOADED if it is full and nobody in it has less claim to wait.
        """
        ticket = Ticket(self, priority, caller, next(self._arrivals))
        if self._may_pass(ticket):
            self._let_in(ticket)
            return ticket
        self._waiting[ticket.number] = ticket
        if len(self._waiting) > self._limits.max_waiting:
            least = self._least_entitled()
            del self._waiting[least.number]
            if least is ticket:
                raise self._overloaded()
            least.turn_away(self._overloaded())
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """For ``Ticket`` only: it leaves, from the engine or from the queue."""
        self._waiting = {number: one for number, one in self._waiting.items() if not one.turn.done()}
        if self._running.pop(ticket.number, None) is not None:
            self._held -= Counter((ticket.caller,))  # drops who holds none
        while self._waiting and len(self._running) < self._limits.max_running:
            waiting = self._waiting.values()
            chosen = self._turns.candidates(waiting, self._held)[0]
            self._turns.took(chosen, waiting)
            del self._waiting[chosen.number]
            self._let_in(chosen)

    def _may_pass(self, ticket: Ticket) -> bool:
        running, most = len(self._running), self._limits.max_running
        if running < most:
            return not self._waiting
        urgent = ticket.priority < max(one.priority for one in self._running.values())
        return urgent and running < _EXPRESS * most

    def _let_in(self, ticket: Ticket) -> None:
        self._running[ticket.number] = ticket
        self._held[ticket.caller] += 1
        ticket.turn.set_result(None)

    def _least_entitled(self) -> Ticket:
        """The latest of the least urgent, of the caller who has the most requests here."""
        places = self._held + Counter(ticket.caller for ticket in self._waiting.values())
        return max(self._waiting.values(), key=lambda one: (one.priority, places[one.caller], one.number))

    def _overloaded(self) -> Fault:
        running, waiting = len(self._running), len(self._waiting)
        message = f"model {self._model} is at its limit: {running} requests run, {waiting} wait"
        details = {"retry_after_s": 1, "running": running, "waiting": waiting}
        return Fault(FaultKind.OVERLOADED, message, "try again later", details)


class Ticket:
    """A place in the queue, then in the engine."""

    def __init__(self, admission: Admission, priority: int, caller: str, number: int) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it has come; ``Fault`` OVERLOADED if this one had to give way."""
        self.priority = priority
        self.caller = caller
        self.number = number
        self._admission = admission

    def turn_away(self, fault: Fault) -> None:
        """For ``Admission`` only."""
        self.turn.set_exception(fault)
        self.turn.exception()  # whoever has gone already does not ask for it

    def leave(self) -> None:
        """Give the place back, wherever it is. Once is enough, more does nothing."""
        self.turn.cancel()
        self._admission.remove(self)
