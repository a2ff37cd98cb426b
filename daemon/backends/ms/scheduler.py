"""Which tokens of which sequences the next step computes: continuous batching with chunked prefill."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable
from dataclasses import dataclass

from daemon.backends.ms.block_manager import BlockManager
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.sequence import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    max_sequences: int
    """Running at a time; at most ``max_rows`` and ``max_logit_rows``, so that all can decode in one step."""
    max_rows: int
    """Tokens of one step."""
    max_logit_rows: int
    """Rows of logits of one step."""
    prefill_chunk: int
    """Prompt tokens of a step in which others decode: bounds what a new prompt costs them."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence in one step; the last ``logit_rows`` of them want logits."""

    sequence: Sequence
    start: int
    count: int
    logit_rows: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """The last row's logits choose the next token."""
        return self.end == len(self.sequence.token_ids)

    def segment(self) -> Segment:
        sequence = self.sequence
        return Segment(
            token_ids=sequence.token_ids[self.start : self.end],
            start=self.start,
            block_table=sequence.block_table,
            logits_from=self.count - self.logit_rows,
            rope_base=sequence.rope[0],
            rope_scale=sequence.rope[1],
        )


@dataclass(slots=True)
class _Budget:
    rows: int
    logit_rows: int


class Scheduler:
    """First come, first served within a priority. When blocks run out, the last in rank waits again."""

    def __init__(self, limits: Limits, blocks: BlockManager) -> None:
        self._limits = limits
        self._blocks = blocks
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self.preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def sequences(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self._waiting, sequence, key=lambda other: other.rank)

    def remove(self, sequence: Sequence, *, forget: bool = False) -> None:
        """It is finished, failed or cancelled. ``forget``: do not share what it computed."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._blocks.free(sequence, forget=forget)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The work of one step. Empty only when there is no work."""
        budget = _Budget(self._limits.max_rows, self._limits.max_logit_rows)
        preemptions = self.preemptions
        chunks = self._decode(budget)
        if chunks:
            budget.rows = min(budget.rows, self._limits.prefill_chunk)
        chunks += self._prefill([seq for seq in self._running if seq.remaining > 1], budget)
        if self.preemptions == preemptions:
            chunks += self._prefill(self._admit(budget), budget)
        return chunks

    def _decode(self, budget: _Budget) -> list[Chunk]:
        chunks = []
        for sequence in [seq for seq in self._running if seq.remaining == 1]:
            if self._make_room(sequence):
                self._blocks.append(sequence)
                chunks += self._cut(sequence, budget)
        return chunks

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempts from the end of the ranks. ``False``: the sequence itself had to go."""
        while sequence in self._running and not self._blocks.can_append(sequence):
            self._preempt(self._running[-1])
        return sequence in self._running

    def _preempt(self, sequence: Sequence) -> None:
        """Its tokens stay, its keys and values are computed again, seldom from the start."""
        self.remove(sequence)
        self.add(sequence)
        self.preemptions += 1

    def _prefill(self, sequences: Iterable[Sequence], budget: _Budget) -> list[Chunk]:
        return [chunk for sequence in sequences for chunk in self._cut(sequence, budget)]

    def _admit(self, budget: _Budget) -> Iterable[Sequence]:
        """Waiting sequences, as long as there are rows, places and blocks."""
        while self._waiting and budget.rows > 0 and len(self._running) < self._limits.max_sequences:
            sequence = self._waiting[0]
            # One block for each running sequence stays free, or the next steps would preempt this one.
            if not self._blocks.can_allocate(sequence, reserve=len(self._running)):
                return
            self._waiting.pop(0)
            self._blocks.allocate(sequence)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.computed
                sequence.queue_s = time.monotonic() - sequence.arrived
            bisect.insort(self._running, sequence, key=lambda other: other.rank)
            yield sequence

    def _cut(self, sequence: Sequence, budget: _Budget) -> list[Chunk]:
        """As much of a sequence as the budget allows: one chunk or none."""
        start, count = sequence.computed, min(sequence.remaining, budget.rows)
        last = len(sequence.token_ids) - 1
        first_wanted = last
        if sequence.wants_prompt_choices:
            first_wanted = max(start, len(sequence.prompt_choices))
        count = min(count, first_wanted - start + budget.logit_rows)
        if count < 1:
            return []
        logit_rows = max(0, start + count - first_wanted)
        budget.rows -= count
        budget.logit_rows -= logit_rows
        return [Chunk(sequence, start, count, logit_rows)]
