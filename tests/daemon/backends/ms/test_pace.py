"""Chunks of prompts follow the measured cost of steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.backends.ms.pace import Pace

Cost = Callable[[int, int, int], float]
"""Seconds of a step with so many rows of answers and of prompts, the latter at a position."""

ANSWERS = 8


def taught(slowdown: float, cost: Cost) -> Pace:
    """After a prompt read alone and some answers without prompts."""
    pace = Pace(slowdown)
    pace.observe(0, 512, cost(0, 512, 0))
    for _ in range(20):
        pace.observe(ANSWERS, 0, cost(ANSWERS, 0, 0))
    return pace


def read(
    pace: Pace, cost: Cost, length: int, noise: random.Random | None = None
) -> Iterator[tuple[int, float]]:
    """The steps of a prompt beside answers: rows of the prompt, seconds."""
    position = 0
    while position < length:
        rows = min(pace.room(ANSWERS), length - position)
        seconds = cost(ANSWERS, rows, position) * (noise.lognormvariate(0, 0.03) if noise else 1.0)
        pace.observe(ANSWERS, rows, seconds)
        position += rows
        yield rows, seconds


def in_proportion(answers: int, prompts: int, position: int) -> float:
    return 0.050 + 0.001 * (answers + prompts)


def bound_by_memory_first(answers: int, prompts: int, position: int) -> float:
    return max(0.060, 0.002 * (answers + prompts))


def with_a_leap_at_once(answers: int, prompts: int, position: int) -> float:
    return 0.020 + 0.0006 * (answers + prompts) + (0.006 if prompts else 0)


def dearer_along_the_prompt(answers: int, prompts: int, position: int) -> float:
    return 0.020 + 0.0006 * answers + prompts * (0.0006 + 5e-7 * position)


def in_tiles(answers: int, prompts: int, position: int) -> float:
    """Twelve rows cost what one does: leaps of 40 %."""
    return 0.040 * -(-(answers + prompts) // 12) + prompts * 4e-7 * position


COSTS = [in_proportion, bound_by_memory_first, with_a_leap_at_once, dearer_along_the_prompt, in_tiles]


@pytest.mark.parametrize("cost", COSTS)
def test_few_steps_exceed_the_limit(cost: Cost) -> None:
    pace, limit = taught(1.8, cost), 1.8 * cost(ANSWERS, 0, 0)
    noise = random.Random(0)
    seconds = [seconds for _ in range(4) for _, seconds in read(pace, cost, 3000, noise)]
    assert sum(taken > limit for taken in seconds) <= 0.03 * len(seconds) + 4
    assert sorted(seconds)[int(0.99 * len(seconds))] <= 1.15 * limit


@pytest.mark.parametrize("cost", COSTS)
def test_room_is_used(cost: Cost) -> None:
    pace, limit = taught(1.8, cost), 1.8 * cost(ANSWERS, 0, 0)
    steps = [step for _ in range(3) for step in read(pace, cost, 3000)]
    chosen = sum(rows for rows, _ in steps) / len(steps)
    middle = next(rows for rows in range(1, 1000) if cost(ANSWERS, rows + 1, 1500) > limit)
    assert chosen > 0.6 * middle


def test_an_accident_is_found_out() -> None:
    pace = taught(1.8, with_a_leap_at_once)
    list(read(pace, with_a_leap_at_once, 3000))
    before = pace.room(ANSWERS)
    for _ in range(3):
        pace.observe(ANSWERS, pace.room(ANSWERS), 1.0)
    list(read(pace, with_a_leap_at_once, 3000))
    assert pace.room(ANSWERS) > 0.7 * before


def test_answers_are_timed_alone_again_now_and_then() -> None:
    pace = taught(1.8, in_proportion)
    rooms = [rows for rows, _ in read(pace, in_proportion, 3000)]
    assert 0.04 < rooms.count(0) / len(rooms) < 0.08


def test_a_machine_that_became_slower_is_no_reason_to_read_less() -> None:
    def slower(answers: int, prompts: int, position: int) -> float:
        return 3.0 * in_proportion(answers, prompts, position)

    pace = taught(1.8, in_proportion)
    before = max(rows for rows, _ in read(pace, in_proportion, 3000))
    for _ in range(3):
        steps = list(read(pace, slower, 3000))
    assert max(rows for rows, _ in steps[-30:]) > 0.7 * before


def test_answers_that_grow_while_a_prompt_is_read_raise_no_limit() -> None:
    def growing(answers: int, prompts: int, position: int) -> float:
        return in_proportion(answers, prompts, position) + 1e-5 * position

    pace, limit = taught(1.8, growing), 1.8 * growing(ANSWERS, 0, 0)
    seconds = [seconds for _, seconds in read(pace, growing, 3000)]
    assert sorted(seconds)[int(0.99 * len(seconds))] <= 1.02 * limit


def test_the_limit_stays_over_hundreds_of_short_steps() -> None:
    def short(answers: int, prompts: int, position: int) -> float:
        return 0.019 + prompts * (0.0022 + 4e-7 * position) + 1.5e-6 * position

    pace, limit = taught(1.7, short), 1.7 * short(ANSWERS, 0, 0)
    for _ in range(30):
        pace.observe(ANSWERS, 0, short(ANSWERS, 0, 0))
    seconds = [seconds for _, seconds in read(pace, short, 3000)]
    assert len(seconds) > 600
    assert sorted(seconds)[int(0.99 * len(seconds))] <= 1.08 * limit


def test_nearest_number_of_answers_stands_for_one_that_was_not_measured() -> None:
    pace = Pace(2.0)
    pace.observe(0, 100, 0.1)
    assert pace.room(4) == 2
    pace.observe(8, 0, 0.020)
    few = pace.room(8)
    assert few > 10
    assert [pace.room(answers) for answers in (1, 30)] == [few, few]
    pace.observe(16, 0, 0.040)
    many = pace.room(16)
    assert many > 1.9 * few
    assert [pace.room(answers) for answers in (1, 11, 13, 30)] == [few, few, many, many]


measured = st.tuples(st.integers(0, 64), st.integers(0, 2048), st.floats(0.0, 10.0))


@settings(max_examples=200)
@given(st.lists(measured, max_size=60), st.integers(1, 64), st.floats(1.001, 100.0))
def test_a_prompt_always_comes_to_an_end(
    steps: list[tuple[int, int, float]], answers: int, slowdown: float
) -> None:
    pace = Pace(slowdown)
    for measurement in steps:
        pace.observe(*measurement)
    rows = pace.room(answers)
    if rows == 0:
        pace.observe(answers, 0, 0.1)
        rows = pace.room(answers)
    assert rows >= 2


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.0, 10.0)), min_size=1, max_size=60))
def test_a_higher_limit_leaves_no_less_room(steps: list[tuple[int, float]]) -> None:
    paces = [Pace(slowdown) for slowdown in (1.2, 1.8, 5.0)]
    for pace in paces:
        pace.observe(8, 0, 0.1)
        for rows, seconds in steps[:30]:
            pace.observe(8, rows, seconds)
    rooms = [pace.room(8) for pace in paces]
    assert rooms == sorted(rooms)
