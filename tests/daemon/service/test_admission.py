"""Places are bounded, given in order, and always come back."""

from __future__ import annotations

import asyncio
import random

import pytest

from contract.faults import Fault, FaultKind
from daemon.service.admission import Admission, QueueLimits, Ticket


def admission(running: int = 1, waiting: int = 2) -> Admission:
    return Admission(QueueLimits(max_running=running, max_waiting=waiting), "m")


async def test_the_full_queue_refuses() -> None:
    queue = admission()
    tickets = [queue.enter(0) for _ in range(3)]
    with pytest.raises(Fault, match="1 requests run, 2 wait") as caught:
        queue.enter(0)
    assert caught.value.kind is FaultKind.OVERLOADED
    assert caught.value.details["retry_after_s"] == 1
    for ticket in tickets:
        ticket.leave()
    assert (queue.running, queue.waiting) == (0, 0)


async def test_the_urgent_go_first_then_the_early() -> None:
    queue = admission(waiting=9)
    first = queue.enter(0)
    tickets = {name: queue.enter(priority) for name, priority in [("late", 5), ("b", 1), ("c", 1), ("a", 0)]}
    order = []
    current: Ticket = first
    while tickets:
        current.leave()
        name = next(name for name, ticket in tickets.items() if ticket.turn.done())
        order.append(name)
        current = tickets.pop(name)
    assert order == ["a", "b", "c", "late"]


async def test_leaving_while_waiting_frees_the_place() -> None:
    queue = admission()
    running, waiting = queue.enter(0), queue.enter(0)
    task = asyncio.create_task(waiting.wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    waiting.leave()
    waiting.leave()
    assert (queue.running, queue.waiting) == (1, 0)
    running.leave()
    assert (queue.running, queue.waiting) == (0, 0)


async def test_counts_hold_whatever_happens() -> None:
    chance = random.Random(7)
    queue = admission(running=3, waiting=4)
    held: list[Ticket] = []
    for _ in range(2000):
        if held and chance.random() < 0.5:
            held.pop(chance.randrange(len(held))).leave()
        else:
            try:
                held.append(queue.enter(chance.randrange(3)))
            except Fault:
                assert len(held) == 7
        assert queue.running == sum(ticket.turn.done() for ticket in held) == min(3, len(held))
        assert queue.waiting == len(held) - queue.running
