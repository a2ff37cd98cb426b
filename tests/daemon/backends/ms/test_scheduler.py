from __future__ import annotations

import time
from typing import Any

import msgspec

from daemon.backends.ms.block_manager import BlockManager
from daemon.backends.ms.scheduler import Chunk, Limits, Scheduler
from daemon.backends.ms.sequence import Sequence
from tests.fakes_engine import request

_BLOCK = 4
_ROOM = 6
"""For prompts beside running answers."""


def scheduler(num_blocks: int = 64, room: int = _ROOM, **limits: int) -> Scheduler:
    defaults = {"max_sequences": 4, "max_rows": 16, "max_logit_rows": 8}
    blocks = BlockManager(num_blocks, _BLOCK, prefix_cache=False)
    return Scheduler(Limits(**(defaults | limits)), blocks, room=lambda rows: room)


def sequence(number: int, length: int, priority: int = 0, **sampling: Any) -> Sequence:
    asked = msgspec.structs.replace(request([number] * length, **sampling), priority=priority)
    return Sequence(number, asked, (1.0, 1.0))


def advance(chunks: list[Chunk]) -> None:
    """As the engine does after a step."""
    for chunk in chunks:
        samples = chunk.samples
        chunk.sequence.computed = chunk.end
        if samples:
            chunk.sequence.token_ids.append(0)
            chunk.sequence.began = chunk.sequence.began or time.monotonic()


def shape(chunks: list[Chunk]) -> list[tuple[int, int, int, int]]:
    return [(chunk.sequence.number, chunk.start, chunk.count, chunk.logit_rows) for chunk in chunks]


def test_prompt_is_computed_in_chunks_and_only_its_end_wants_logits() -> None:
    plan = scheduler()
    plan.add(sequence(1, 40))
    steps = []
    for _ in range(4):
        chunks = plan.schedule()
        steps.append(shape(chunks))
        advance(chunks)
    assert steps == [[(1, 0, 16, 0)], [(1, 16, 16, 0)], [(1, 32, 8, 1)], [(1, 40, 1, 1)]]


def test_without_room_answers_go_on_alone_and_nobody_is_admitted() -> None:
    plan = scheduler(room=0)
    plan.add(sequence(1, 3))
    advance(plan.schedule())
    long = sequence(2, 40)
    plan.add(long)
    chunks = plan.schedule()
    assert shape(chunks) == [(1, 3, 1, 1)]
    advance(chunks)
    assert (plan.num_running, plan.num_waiting) == (1, 1)


def test_decoding_goes_first_and_prompts_share_a_bounded_rest() -> None:
    plan = scheduler()
    plan.add(sequence(1, 3))
    advance(plan.schedule())
    plan.add(sequence(2, 10))
    plan.add(sequence(3, 10))
    chunks = plan.schedule()
    assert shape(chunks) == [(1, 3, 1, 1), (2, 0, 6, 0)]
    advance(chunks)
    chunks = plan.schedule()
    assert shape(chunks) == [(1, 4, 1, 1), (2, 6, 4, 1), (3, 0, 2, 0)]


def test_short_prompts_start_together() -> None:
    plan = scheduler()
    for number in range(1, 6):
        plan.add(sequence(number, 3))
    assert [number for number, *_ in shape(plan.schedule())] == [1, 2, 3, 4]
    assert (plan.num_running, plan.num_waiting) == (4, 1)


def test_first_come_first_served_within_a_priority() -> None:
    plan = scheduler(max_sequences=1)
    plan.add(sequence(1, 2, priority=5))
    plan.add(sequence(2, 2, priority=0))
    plan.add(sequence(3, 2, priority=0))
    order = []
    while plan.has_work:
        (chunk,) = plan.schedule()
        order.append(chunk.sequence.number)
        plan.remove(chunk.sequence)
    assert order == [2, 3, 1]


def test_newest_of_the_lowest_priority_is_preempted() -> None:
    plan = scheduler(num_blocks=6, max_rows=32)
    for number, priority in ((1, 0), (2, 1), (3, 1)):
        plan.add(sequence(number, 4, priority=priority))
    advance(plan.schedule())
    assert plan.num_running == 3
    for _ in range(4):
        advance(plan.schedule())
    assert plan.preemptions == 0
    chunks = plan.schedule()
    assert [number for number, *_ in shape(chunks)] == [1, 2]
    assert (plan.preemptions, plan.num_waiting) == (1, 1)
    (waiting,) = [seq for seq in plan.sequences if not seq.block_table]
    assert waiting.number == 3
    assert waiting.computed == 0
    assert len(waiting.token_ids) == 9


def test_preempted_sequence_is_computed_again_when_there_is_room() -> None:
    plan = scheduler(num_blocks=6, max_rows=32)
    for number in (1, 2, 3):
        plan.add(sequence(number, 4))
    while not plan.preemptions:
        advance(plan.schedule())
    assert [number for number, *_ in shape(plan.schedule())] == [1, 2]
    for finished in plan.sequences[:2]:
        plan.remove(finished)
    assert shape(plan.schedule()) == [(3, 0, 9, 1)]


def test_prompt_log_probabilities_want_all_rows_within_the_budget() -> None:
    plan = scheduler()
    plan.add(sequence(1, 2))
    advance(plan.schedule())
    asking = sequence(2, 20, prompt_logprobs=1)
    plan.add(asking)
    steps = []
    for _ in range(5):
        chunks = plan.schedule()
        asking.prompt_choices += [None] * chunks[1].logit_rows  # type: ignore[list-item]
        del asking.prompt_choices[19:]
        steps.append(shape(chunks)[1])
        advance(chunks)
    assert steps == [(2, 0, 6, 6), (2, 6, 6, 6), (2, 12, 6, 6), (2, 18, 2, 2), (2, 20, 1, 1)]


def test_no_more_logit_rows_than_there_are() -> None:
    plan = scheduler(max_sequences=2, max_logit_rows=2)
    plan.add(sequence(1, 6, prompt_logprobs=0))
    plan.add(sequence(2, 6))
    chunks = plan.schedule()
    assert shape(chunks) == [(1, 0, 2, 2), (2, 0, 5, 0)]


def test_removed_sequence_gives_its_blocks_back() -> None:
    plan = scheduler(num_blocks=2)
    first, second = sequence(1, 8), sequence(2, 8)
    plan.add(first)
    plan.add(second)
    assert [number for number, *_ in shape(plan.schedule())] == [1]
    plan.remove(first)
    plan.remove(first)
    assert [number for number, *_ in shape(plan.schedule())] == [2]
    waiting = sequence(3, 8)
    plan.add(waiting)
    plan.remove(waiting)
    assert plan.sequences == [second]
