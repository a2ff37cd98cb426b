"""Turns: urgency, then even shares, then arrival; and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from daemon.backends.turns import OLDEST_EVERY, Turns, most_entitled


@dataclass(frozen=True)
class Someone:
    number: int
    priority: int = 0
    caller: str = ""


def test_urgency_goes_before_shares_and_shares_before_arrival() -> None:
    waiting = [
        Someone(1, 0, "flood"),
        Someone(2, 0, "other"),
        Someone(3, 0, "other"),
        Someone(4, -1, "flood"),
    ]
    held = Counter({"flood": 3, "other": 0})
    order = []
    while waiting:
        chosen = most_entitled(waiting, held)
        waiting.remove(chosen)
        order.append(chosen.number)
    assert order == [4, 2, 3, 1]


def test_callers_with_equal_shares_go_by_arrival() -> None:
    waiting = [Someone(2, caller="a"), Someone(1, caller="b")]
    assert most_entitled(waiting, {"a": 1, "b": 1}).number == 1


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(-3, -1), st.sampled_from("abc")), min_size=400, max_size=400),
)
def test_the_least_urgent_gets_a_turn_after_a_bounded_number_of_others(
    older: int, arrivals: list[tuple[int, str]]
) -> None:
    patient = Someone(older, priority=99, caller="patient")
    waiting = [*(Someone(number, priority=99) for number in range(older)), patient]
    turns, given_turns = Turns(), 0
    for number, (priority, caller) in enumerate(arrivals, older + 1):
        waiting.append(Someone(number, priority, caller))
        chosen = turns.candidates(waiting, {"patient": 5})[0]
        turns.took(chosen, waiting)
        waiting.remove(chosen)
        given_turns += 1
        if chosen is patient:
            break
    assert patient not in waiting
    assert given_turns <= OLDEST_EVERY * (older + 1)


def test_a_turn_for_age_waits_for_room_and_lets_others_pass_meanwhile() -> None:
    turns = Turns()
    big = Someone(0, priority=1)
    number = 1
    for _ in range(OLDEST_EVERY - 1):
        waiting = [big, Someone(number)]
        assert turns.candidates(waiting, {}) == [waiting[1]]
        assert not turns.took(waiting[1], waiting)
        number += 1
    waiting = [big, Someone(number)]
    assert turns.candidates(waiting, {}) == waiting
    assert not turns.took(waiting[1], waiting)
    waiting = [big, Someone(number + 1)]
    assert turns.candidates(waiting, {}) == waiting
    assert turns.took(big, waiting)
    assert turns.candidates(waiting[1:], {}) == waiting[1:]
