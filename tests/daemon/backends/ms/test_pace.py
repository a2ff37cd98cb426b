"""Chunks of prompts follow the measured cost of steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.backends.ms.pace import Pace


def learn(pace: Pace, cost: Callable[[int], float], rows: int, steps: int = 60) -> int:
    """Steps with answers alone and with prompts beside them; the room at the end."""
    for _ in range(steps):
        pace.observe(rows, cost(rows))
        together = rows + pace.room(rows)
        pace.observe(together, cost(together))
    return pace.room(rows)


@pytest.mark.parametrize(
    "cost",
    [
        lambda rows: 0.050 + 0.001 * rows,
        lambda rows: max(0.060, 0.002 * rows),
        lambda rows: 0.010 + 0.0005 * rows + (0.004 if rows > 32 else 0),
    ],
)
def test_room_grows_to_the_budget_and_not_beyond(cost: Callable[[int], float]) -> None:
    pace = Pace(1.7)
    pace.observe(512, cost(512))
    room = learn(pace, cost, 8)
    assert cost(8 + room) <= 1.7 * cost(8)
    assert cost(int((8 + room) * 1.3)) > 1.7 * cost(8)


def test_never_a_step_far_beyond_the_budget_once_a_prompt_and_an_answer_were_measured() -> None:
    def cost(rows: int) -> float:
        return max(0.060, 0.004 * rows)

    pace = Pace(1.7)
    pace.observe(512, cost(512))
    pace.observe(8, cost(8))
    for _ in range(50):
        together = 8 + pace.room(8)
        assert cost(together) <= 1.7 * cost(8)
        pace.observe(together, cost(together))


def test_room_follows_when_the_machine_slows_down() -> None:
    pace = Pace(2.0)
    before = learn(pace, lambda rows: 0.05 + 0.001 * rows, 8)
    after = learn(pace, lambda rows: 0.05 + 0.004 * rows, 8)
    assert after < before / 2


@given(
    st.lists(st.tuples(st.integers(1, 2048), st.floats(1e-6, 10.0)), max_size=40),
    st.integers(1, 64),
    st.floats(1.001, 100.0),
)
def test_a_prompt_always_comes_to_an_end(
    measured: list[tuple[int, float]], rows: int, slowdown: float
) -> None:
    pace = Pace(slowdown)
    for size, seconds in measured:
        pace.observe(size, seconds)
    assert pace.room(rows) >= 8
