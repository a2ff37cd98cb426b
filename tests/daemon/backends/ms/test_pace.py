"""Chunks of prompts follow the measured cost of steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.backends.ms.pace import Pace

Cost = Callable[[int, int], float]
"""Seconds of a step with so many rows of answers and of prompts."""


def taught(slowdown: float, cost: Cost, answers: int) -> Pace:
    """After a prompt read alone and some answers without prompts."""
    pace = Pace(slowdown)
    pace.observe(0, 512, cost(0, 512))
    for _ in range(5):
        pace.observe(answers, 0, cost(answers, 0))
    return pace


@pytest.mark.parametrize(
    "cost",
    [
        lambda answers, prompts: 0.050 + 0.001 * (answers + prompts),
        lambda answers, prompts: max(0.060, 0.002 * (answers + prompts)),
        lambda answers, prompts: 0.010 + 0.0005 * (answers + prompts) + (0.002 if prompts else 0),
    ],
)
def test_steps_use_their_budget_and_do_not_exceed_it(cost: Cost) -> None:
    pace = taught(1.7, cost, 8)
    for _ in range(40):
        room = pace.room(8)
        pace.observe(8, room, cost(8, room))
    assert cost(8, pace.room(8)) <= 1.75 * cost(8, 0)
    assert cost(8, int(1.2 * pace.room(8)) + 1) > 1.6 * cost(8, 0)


def test_room_shrinks_along_a_prompt_whose_rows_grow_dearer() -> None:
    def cost(answers: int, prompts: int, context: int = 0) -> float:
        return 0.020 + 0.0005 * answers + prompts * (0.0005 + 1e-6 * context)

    pace = taught(1.7, cost, 8)
    context = 0
    while context < 3000:
        room = pace.room(8)
        seconds = cost(8, room, context)
        assert seconds <= 1.85 * cost(8, 0)
        pace.observe(8, room, seconds)
        context += room


def test_nearest_number_of_answers_stands_for_one_that_was_not_measured() -> None:
    pace = Pace(2.0)
    pace.observe(0, 100, 0.1)
    assert pace.room(4) == 2
    pace.observe(8, 0, 0.020)
    assert [pace.room(answers) for answers in (1, 8, 30)] == [20, 20, 20]
    pace.observe(16, 0, 0.040)
    assert [pace.room(answers) for answers in (1, 11, 13, 30)] == [20, 20, 40, 40]


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 2048), st.floats(0.0, 10.0)), max_size=40),
    st.integers(1, 64),
    st.floats(1.001, 100.0),
)
def test_a_prompt_always_comes_to_an_end(
    measured: list[tuple[int, int, float]], rows: int, slowdown: float
) -> None:
    pace = Pace(slowdown)
    for answers, prompts, seconds in measured:
        pace.observe(answers, prompts, seconds)
    assert pace.room(rows) >= 2
