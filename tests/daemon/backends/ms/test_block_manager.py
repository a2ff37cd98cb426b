from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemon.backends.ms.block_manager import BlockManager
from daemon.backends.ms.sequence import Sequence
from tests.fakes_engine import request

BLOCK = 4


def sequence(number: int, prompt: list[int], base: float = 1.0) -> Sequence:
    return Sequence(number, request(prompt), (base, 1.0))


def computed(blocks: BlockManager, number: int, prompt: list[int], base: float = 1.0) -> Sequence:
    """Allocated, and every token but the last computed."""
    new = sequence(number, prompt, base)
    blocks.allocate(new)
    new.computed = len(prompt) - 1
    blocks.commit(new)
    return new


def test_same_beginning_is_shared_up_to_the_last_full_block() -> None:
    blocks = BlockManager(8, BLOCK)
    first = computed(blocks, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    second = sequence(2, [1, 2, 3, 4, 5, 6, 7, 8, 11])
    blocks.allocate(second)
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    assert second.computed == 8


def test_the_last_token_is_always_computed() -> None:
    blocks = BlockManager(8, BLOCK)
    computed(blocks, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = sequence(2, [1, 2, 3, 4, 5, 6, 7, 8])
    blocks.allocate(second)
    assert second.computed == 4


def test_blocks_not_yet_computed_are_not_shared() -> None:
    blocks = BlockManager(8, BLOCK)
    blocks.allocate(sequence(1, [1, 2, 3, 4, 5]))
    second = sequence(2, [1, 2, 3, 4, 5])
    blocks.allocate(second)
    assert second.computed == 0


def test_rotary_base_and_earlier_blocks_are_part_of_the_identity() -> None:
    blocks = BlockManager(16, BLOCK)
    computed(blocks, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    other_base = sequence(2, [1, 2, 3, 4, 5], base=2.0)
    other_start = sequence(3, [9, 9, 9, 9, 5, 6, 7, 8, 9])
    for new in (other_base, other_start):
        blocks.allocate(new)
        assert new.computed == 0


def test_freed_blocks_are_found_again_until_they_are_reused() -> None:
    blocks = BlockManager(4, BLOCK)
    first = computed(blocks, 1, [1, 2, 3, 4, 5])
    blocks.free(first)
    assert blocks.num_free == 4
    again = sequence(2, [1, 2, 3, 4, 6])
    blocks.allocate(again)
    assert again.computed == 4
    blocks.free(again)
    all_of_it = sequence(3, [7] * 16)
    assert blocks.can_allocate(all_of_it)
    blocks.allocate(all_of_it)
    blocks.free(all_of_it)
    late = sequence(4, [1, 2, 3, 4, 5])
    blocks.allocate(late)
    assert late.computed == 0


def test_longest_unused_content_goes_first() -> None:
    blocks = BlockManager(4, BLOCK)
    old = computed(blocks, 1, [1, 1, 1, 1, 5])
    new = computed(blocks, 2, [2, 2, 2, 2, 5])
    blocks.free(old)
    blocks.free(new)
    blocks.allocate(sequence(3, [9] * 12))
    kept, lost = sequence(4, [2, 2, 2, 2, 6]), sequence(5, [1, 1, 1, 1, 6])
    assert blocks.can_allocate(kept) is False
    assert len(blocks._find_prefix(kept)) == 1
    assert blocks._find_prefix(lost) == []


def test_forgotten_content_is_not_found() -> None:
    blocks = BlockManager(8, BLOCK)
    blocks.free(computed(blocks, 1, [1, 2, 3, 4, 5]), forget=True)
    again = sequence(2, [1, 2, 3, 4, 5])
    blocks.allocate(again)
    assert again.computed == 0


def test_what_was_found_is_not_forgotten() -> None:
    blocks = BlockManager(8, BLOCK)
    blocks.free(computed(blocks, 1, [1, 2, 3, 4, 5]))
    failed = computed(blocks, 2, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    blocks.free(failed, forget=True)
    again = sequence(3, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    blocks.allocate(again)
    assert again.computed == 4, "the first block is another's and found again, the second is not"


def test_prefix_cache_can_be_off() -> None:
    blocks = BlockManager(8, BLOCK, prefix_cache=False)
    computed(blocks, 1, [1, 2, 3, 4, 5])
    again = sequence(2, [1, 2, 3, 4, 5])
    blocks.allocate(again)
    assert again.computed == 0


class Blocks(RuleBasedStateMachine):
    """Any order of allocate, append, commit and free leaves every block in exactly one place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, BLOCK)
        self.live: list[Sequence] = []
        self.numbers = 0

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=24), base=st.sampled_from([1.0, 2.0]))
    def allocate(self, prompt: list[int], base: float) -> None:
        self.numbers += 1
        new = sequence(self.numbers, prompt, base)
        if not self.blocks.can_allocate(new):
            return
        self.blocks.allocate(new)
        assert new.computed < len(prompt)
        self.live.append(new)

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 1 << 16), token=st.integers(0, 1))
    def append(self, pick: int, token: int) -> None:
        chosen = self.live[pick % len(self.live)]
        chosen.token_ids.append(token)
        if not self.blocks.can_append(chosen):
            chosen.token_ids.pop()
            return
        self.blocks.append(chosen)
        self.written_block_is_private(chosen)

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 1 << 16), tokens=st.integers(1, 9))
    def compute(self, pick: int, tokens: int) -> None:
        chosen = self.live[pick % len(self.live)]
        if chosen.remaining:
            self.written_block_is_private(chosen)
        chosen.computed = min(len(chosen.token_ids), chosen.computed + tokens)
        self.blocks.commit(chosen)

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 1 << 16), forget=st.booleans())
    def free(self, pick: int, forget: bool) -> None:
        chosen = self.live.pop(pick % len(self.live))
        found = chosen.block_table[: chosen.found]
        before = {number: self.blocks._blocks[number].hash for number in found}
        own = chosen.block_table[chosen.found :]
        self.blocks.free(chosen, forget=forget)
        assert {number: self.blocks._blocks[number].hash for number in found} == before
        if forget:
            assert not any(self.blocks._blocks[number].hash for number in own)

    def written_block_is_private(self, chosen: Sequence) -> None:
        start = chosen.computed // BLOCK
        for number in chosen.block_table[start:]:
            assert sum(number in other.block_table for other in self.live) == 1

    @invariant()
    def each_block_is_free_or_owned_as_often_as_it_is_in_tables(self) -> None:
        tables = [number for live in self.live for number in live.block_table]
        for block in self.blocks._blocks:
            assert block.owners == tables.count(block.number)
            assert (block.owners == 0) == (block.number in self.blocks._free)
        for live in self.live:
            assert len(set(live.block_table)) == len(live.block_table)
            assert len(live.block_table) == -(-len(live.token_ids) // BLOCK)

    @invariant()
    def hashes_and_blocks_point_at_each_other(self) -> None:
        for digest, block in self.blocks._by_hash.items():
            assert block.hash == digest
        assert sum(block.hash is not None for block in self.blocks._blocks) == len(self.blocks._by_hash)

    def teardown(self) -> None:
        for live in self.live:
            self.blocks.free(live)
        assert self.blocks.num_free == 12
        assert self.blocks.used_fraction == 0.0


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
