"""Places are bounded, given in order, and always come back."""

from __future__ import annotations

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
                held.append(queue.enter(0, chance.choice("aaab")))
            except Fault:
                assert queue.waiting == 4
        held = [ticket for ticket in held if not ticket.turn.done() or ticket.turn.exception() is None]
        assert queue.running == sum(ticket.turn.done() for ticket in held) == min(3, len(held))
        assert queue.waiting == len(held) - queue.running


def caller_of_next(queue: Admission, running: list[Ticket], waiting: list[Ticket]) -> str:
    """Someone in the engine leaves; who comes in for it."""
    running.pop(0).leave()
    (chosen,) = [ticket for ticket in waiting if ticket.turn.done()]
    waiting.remove(chosen)
    running.append(chosen)
    return chosen.caller


async def test_one_callers_flood_does_not_keep_another_waiting() -> None:
    queue = admission(running=4, waiting=20)
    running = [queue.enter(0, "flood") for _ in range(4)]
    waiting = [queue.enter(0, "flood") for _ in range(10)]
    waiting += [queue.enter(0, "other") for _ in range(3)]
    assert [caller_of_next(queue, running, waiting) for _ in range(4)] == ["other", "other", "flood", "flood"]


async def test_full_of_one_callers_requests_it_takes_anothers_in_exchange() -> None:
    queue = admission(running=1, waiting=3)
    running = queue.enter(0, "flood")
    waiting = [queue.enter(0, "flood") for _ in range(3)]
    with pytest.raises(Fault, match="at its limit"):
        queue.enter(0, "flood")
    other = queue.enter(0, "other")
    assert (queue.running, queue.waiting) == (1, 3)
    with pytest.raises(Fault, match="1 requests run, 3 wait") as caught:
        await waiting[2].turn
    assert caught.value.kind is FaultKind.OVERLOADED
    waiting[2].leave()
    assert (queue.running, queue.waiting) == (1, 3)
    urgent = queue.enter(-1, "flood")
    assert urgent.turn.done()
    for ticket in (urgent, running, *waiting, other):
        ticket.leave()
    assert (queue.running, queue.waiting) == (0, 0)


async def test_the_urgent_pass_to_the_engine_up_to_a_bound() -> None:
    queue = admission(running=2, waiting=9)
    for _ in range(3):
        queue.enter(0)
    urgent = [queue.enter(-1) for _ in range(4)]
    assert [ticket.turn.done() for ticket in urgent] == [True, True, False, False]
    assert not queue.enter(0).turn.done()


async def test_the_least_urgent_gets_its_turn_among_the_urgent() -> None:
    queue = admission(waiting=9)
    running = queue.enter(0)
    patient = queue.enter(9)
    for turns in range(20):
        follower = queue.enter(0)
        running.leave()
        if patient.turn.done():
            assert turns < 10
            return
        running = follower
    raise AssertionError("it waits for ever")


async def test_who_stopped_waiting_gets_no_turn_before_it_leaves() -> None:
    queue = admission(waiting=3)
    running, gone, next_one = queue.enter(0), queue.enter(0), queue.enter(0)
    gone.turn.cancel()
    running.leave()
    assert next_one.turn.done()
    gone.leave()
    assert (queue.running, queue.waiting) == (1, 0)
