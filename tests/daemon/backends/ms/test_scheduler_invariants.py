"""What holds whatever is asked: nobody is lost, no block leaks, the urgent go first, the patient get on."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.backends.ms.block_manager import BlockManager
from daemon.backends.ms.scheduler import Chunk, Limits, Scheduler
from daemon.backends.ms.sequence import Sequence
from tests.fakes_engine import request

_BLOCK = 4


class Plant:
    """A scheduler, and steps as the engine would make them; a second a step."""

    def __init__(self, num_blocks: int, room: int, *, prefix_cache: bool = False, **limits: int) -> None:
        self.now = 0.0
        self.num_blocks = num_blocks
        self.blocks = BlockManager(num_blocks, _BLOCK, prefix_cache=prefix_cache)
        self.limits = Limits(**({"max_sequences": 3, "max_rows": 16, "max_logit_rows": 8} | limits))
        self.plan = Scheduler(self.limits, self.blocks, room=lambda rows: room, clock=lambda: self.now)
        self.numbers = itertools.count()
        self.over: list[Sequence] = []

    def add(self, length: int, answer: int = 4, priority: int = 0, caller: str = "") -> Sequence:
        number = next(self.numbers)
        asked = request([number % 40] * length, answer)
        asked = msgspec.structs.replace(asked, priority=priority, caller=caller)
        sequence = Sequence(number, asked, (1.0, 1.0), arrived=self.now)
        self.plan.add(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        self.now += 1.0
        chunks = self.plan.schedule()
        self._check(chunks)
        for chunk in chunks:
            self._advance(chunk)
        return chunks

    def _advance(self, chunk: Chunk) -> None:
        sequence, samples = chunk.sequence, chunk.samples
        sequence.computed = chunk.end
        self.blocks.commit(sequence)
        if not samples:
            return
        if sequence.began is None:
            sequence.began = self.now
        sequence.token_ids.append(sequence.number % 40)
        if sequence.answer_len >= sequence.sampling.max_tokens:
            self.plan.remove(sequence)
            self.over.append(sequence)

    def _check(self, chunks: list[Chunk]) -> None:
        assert sum(chunk.count for chunk in chunks) <= self.limits.max_rows
        assert sum(chunk.logit_rows for chunk in chunks) <= self.limits.max_logit_rows
        assert len({chunk.sequence.number for chunk in chunks}) == len(chunks)
        assert self.plan.num_running <= self.limits.max_sequences
        for chunk in chunks:
            # Still running, and with blocks for what is computed: a preempted one would write into others'.
            assert chunk.start == chunk.sequence.computed
            assert len(chunk.sequence.block_table) * _BLOCK >= chunk.end
        answering = [seq for seq in self.plan.sequences if seq.block_table and seq.remaining == 1]
        assert {seq.number for seq in answering} <= {chunk.sequence.number for chunk in chunks}
        owned = {number for seq in self.plan.sequences for number in seq.block_table}
        assert len(owned) + self.blocks.num_free == self.num_blocks


@st.composite
def arrivals(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "length": draw(st.one_of(st.integers(1, 12), st.integers(13, 36))),
        "answer": draw(st.integers(1, 8)),
        "priority": draw(st.integers(-1, 1)),
        "caller": draw(st.sampled_from("ab")),
    }


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(st.tuples(arrivals(), st.integers(0, 3), st.booleans()), min_size=1, max_size=25),
    num_blocks=st.integers(12, 40),
    room=st.integers(1, 12),
    prefix_cache=st.booleans(),
)
def test_everybody_is_served_or_cancelled_and_every_block_comes_back(
    asked: list[tuple[dict[str, Any], int, bool]], num_blocks: int, room: int, prefix_cache: bool
) -> None:
    plant = Plant(num_blocks, room, prefix_cache=prefix_cache)
    cancelled = []
    for arrival, steps, cancel in asked:
        sequence = plant.add(**arrival)
        for _ in range(steps):
            if plant.plan.has_work:
                assert plant.step()
        if cancel and sequence not in plant.over:
            plant.plan.remove(sequence)
            cancelled.append(sequence)
    for _ in range(3000):
        if not plant.plan.has_work:
            break
        assert plant.step()
    assert sorted(seq.number for seq in plant.over + cancelled) == list(range(len(asked)))
    assert plant.blocks.num_free == num_blocks


@given(length=st.integers(1, 40), room=st.integers(1, 6), calls=st.sampled_from(["same", "different"]))
@settings(max_examples=40, deadline=None)
def test_one_of_the_lowest_priority_is_answered_under_a_flood_of_the_urgent(
    length: int, room: int, calls: str
) -> None:
    plant = Plant(24, room)
    patient = plant.add(length, priority=9, caller="patient")
    for step in range(600):
        for _ in range(2):
            plant.add(6, priority=-1, caller="" if calls == "same" else str(step))
        plant.step()
        if patient in plant.over:
            return
    raise AssertionError("it waits for ever")


def test_a_flood_of_one_caller_does_not_keep_others_waiting() -> None:
    plant = Plant(64, 8)
    for _ in range(50):
        plant.add(4, answer=10, caller="flood")
    for _ in range(5):
        plant.step()
    other = plant.add(4, caller="other")
    while other not in plant.over:
        plant.step()
    assert len(plant.over) <= 2 * plant.limits.max_sequences


def test_the_urgent_displace_the_least_urgent_that_runs() -> None:
    plant = Plant(64, 8)
    low = [plant.add(4, answer=50, priority=priority) for priority in (1, 2, 3)]
    for _ in range(3):
        plant.step()
    urgent = plant.add(4, priority=0)
    assert urgent in [chunk.sequence for chunk in plant.step()]
    assert [bool(seq.block_table) for seq in low] == [True, True, False]
    assert plant.plan.preemptions == 1
    while urgent not in plant.over:
        plant.step()
    plant.step()
    assert low[2].block_table


def test_equals_are_not_displaced() -> None:
    plant = Plant(64, 8)
    for _ in range(3):
        plant.add(4, answer=50)
    plant.step()
    plant.add(4)
    plant.step()
    assert plant.plan.preemptions == 0


def test_nobody_is_displaced_in_vain() -> None:
    plant = Plant(12, 8)
    plant.add(20, answer=6, priority=0)
    low = plant.add(8, answer=50, priority=1)
    for _ in range(4):
        plant.step()
    plant.add(40, priority=0)
    plant.step()
    assert low.block_table
    assert plant.plan.preemptions == 0


def test_a_short_prompt_passes_a_long_one_that_is_being_read() -> None:
    plant = Plant(64, 4)
    plant.add(3, answer=100)
    plant.step()
    long = plant.add(90)
    for _ in range(3):
        plant.step()
    short = plant.add(6)
    steps = 0
    while short.began is None:
        read_before = long.computed
        plant.step()
        steps += 1
        assert long.computed > read_before
    assert steps == 3
    assert long.began is None


def test_prompts_that_came_together_are_read_at_full_speed_and_later_ones_politely() -> None:
    plant = Plant(64, 4, max_sequences=6)
    burst = [plant.add(8, answer=30) for _ in range(4)]
    plant.step()
    assert [seq.answer_len for seq in burst] == [1, 1, 0, 0]
    plant.step()
    assert [seq.answer_len for seq in burst[:3]] == [2, 2, 1]
    plant.step()
    late = plant.add(8)
    plant.step()
    assert late.computed == 4


def test_who_waited_for_a_place_reads_politely() -> None:
    plant = Plant(64, 4, max_sequences=2)
    plant.add(2, answer=3)
    plant.add(2, answer=30)
    waiting = plant.add(8)
    while not waiting.block_table:
        plant.step()
    assert waiting.computed == 4


def test_a_prompt_longer_than_a_step_is_read_politely_even_in_a_burst() -> None:
    plant = Plant(64, 4)
    plant.add(2, answer=30)
    long = plant.add(40)
    plant.step()
    assert long.computed == 14
    plant.step()
    assert long.computed == 18
