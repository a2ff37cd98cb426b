"""Who owns which KV block. Full blocks are shared between sequences with the same beginning.

Knows nothing of tensors: the runner holds the memory, this holds the numbers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from daemon.backends.ms.sequence import Sequence


@dataclass(slots=True)
class Block:
    number: int
    owners: int = 0
    hash: bytes | None = None
    """Of its tokens and all before them, once it is full, computed and shared."""


class BlockManager:
    """Blocks are free or owned. A free block keeps its content until it is needed for another."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._blocks = [Block(number) for number in range(num_blocks)]
        self._by_hash: dict[bytes, Block] = {}
        self._free: OrderedDict[int, Block] = OrderedDict((block.number, block) for block in self._blocks)
        """Next to be reused first: blocks without reusable content, then the longest unused."""

    @property
    def capacity(self) -> int:
        """Tokens."""
        return len(self._blocks) * self.block_size

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def used_fraction(self) -> float:
        return 1.0 - len(self._free) / len(self._blocks)

    def can_allocate(self, sequence: Sequence, reserve: int = 0) -> bool:
        """Whether all present tokens of a waiting sequence find room and ``reserve`` blocks stay free."""
        found = self._find_prefix(sequence)
        taken_from_free = self._blocks_for(sequence) - sum(block.owners > 0 for block in found)
        return taken_from_free + reserve <= len(self._free)

    def can_free_for(self, sequence: Sequence, victims: list[Sequence], reserve: int = 0) -> bool:
        """Whether a waiting sequence could find room if the victims gave up what is theirs alone."""
        theirs = Counter(number for victim in victims for number in victim.block_table)
        freed = sum(self._blocks[number].owners == count for number, count in theirs.items())
        return self._blocks_for(sequence) + reserve - len(victims) <= len(self._free) + freed

    def allocate(self, sequence: Sequence) -> None:
        """Give a waiting sequence its blocks, shared where its beginning is known; that part is computed."""
        found = self._find_prefix(sequence)
        for block in found:
            self._free.pop(block.number, None)
            block.owners += 1
            sequence.block_table.append(block.number)
        sequence.found = sequence.committed = len(found)
        sequence.computed = len(found) * self.block_size
        self.append(sequence)

    def can_append(self, sequence: Sequence, guessed: int = 0) -> bool:
        """Whether a running sequence finds room for tokens that it has got since, and for guessed ones."""
        return self._blocks_for(sequence, guessed) - len(sequence.block_table) <= len(self._free)

    def append(self, sequence: Sequence, guessed: int = 0) -> None:
        for _ in range(self._blocks_for(sequence, guessed) - len(sequence.block_table)):
            _, block = self._free.popitem(last=False)
            self._unshare(block)
            block.owners = 1
            sequence.block_table.append(block.number)

    def commit(self, sequence: Sequence) -> None:
        """Offer the full, computed blocks of a sequence to others."""
        if not self._prefix_cache:
            return
        full = sequence.computed // self.block_size
        for index in range(sequence.committed, full):
            block = self._blocks[sequence.block_table[index]]
            digest = sequence.block_hash(index, self.block_size)
            if digest not in self._by_hash:
                block.hash = digest
                self._by_hash[digest] = block
        sequence.committed = max(sequence.committed, full)

    def free(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take the blocks back. ``forget``: what it computed may be bad and must not be found."""
        # The end of a sequence is of less use to others than its beginning: it is reused first.
        for index, number in reversed(list(enumerate(sequence.block_table))):
            block = self._blocks[number]
            if forget and index >= sequence.found:
                self._unshare(block)
            block.owners -= 1
            if block.owners == 0:
                self._free[number] = block
                self._free.move_to_end(number, last=block.hash is not None)
        sequence.block_table.clear()
        sequence.found = sequence.committed = sequence.computed = 0

    def _blocks_for(self, sequence: Sequence, guessed: int = 0) -> int:
        return -(-(len(sequence.token_ids) + guessed) // self.block_size)

    def _find_prefix(self, sequence: Sequence) -> list[Block]:
        """The longest known beginning, short of the last token: its logits are needed."""
        found: list[Block] = []
        if not self._prefix_cache or sequence.wants_prompt_choices:
            return found
        for index in range((len(sequence.token_ids) - 1) // self.block_size):
            block = self._by_hash.get(sequence.block_hash(index, self.block_size))
            if block is None:
                break
            found.append(block)
        return found

    def _unshare(self, block: Block) -> None:
        if block.hash is not None:
            del self._by_hash[block.hash]
            block.hash = None
