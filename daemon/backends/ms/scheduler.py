"""Which tokens of which sequences the next step computes: continuous batching with chunked prefill."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from daemon.backends.ms.block_manager import BlockManager
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.sequence import Sequence
from daemon.backends.turns import Turns, most_entitled


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    max_sequences: int
    """Running at a time; at most ``max_rows`` and ``max_logit_rows``, so that all can decode in one step."""
    max_rows: int
    """Tokens of one step."""
    max_logit_rows: int
    """Rows of logits of one step."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence in one step; the last ``logit_rows`` of them want logits.

    After them come guessed tokens; they want logits, too.
    """

    sequence: Sequence
    start: int
    count: int
    logit_rows: int
    answers: bool = False
    """Goes on with an answer, instead of reading a prompt."""
    guess: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Of the tokens that are no guess."""
        return self.start + self.count

    @property
    def rows(self) -> int:
        return self.count + len(self.guess)

    @property
    def samples(self) -> bool:
        """The logits after the last token choose the next one."""
        return self.end == len(self.sequence.token_ids)

    def segment(self) -> Segment:
        sequence = self.sequence
        return Segment(
            token_ids=[*sequence.token_ids[self.start : self.end], *self.guess],
            start=self.start,
            block_table=sequence.block_table,
            logits_from=self.count - self.logit_rows,
            rope_base=sequence.rope[0],
            rope_scale=sequence.rope[1],
            adapter=sequence.adapter,
        )


@dataclass(slots=True)
class _Budget:
    rows: int
    logit_rows: int
    polite_rows: int
    """Of prompts that would delay answers which had begun before."""

    def spend(self, rows: int) -> None:
        self.rows -= rows
        self.polite_rows -= rows


class Scheduler:
    """Answers go on in every step, prompts are read in the room beside them; see ARCHITECTURE.md."""

    def __init__(
        self,
        limits: Limits,
        blocks: BlockManager,
        room: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``room``: rows of prompts that may join a step with so many rows of answers; now and then none."""
        self._limits = limits
        self._blocks = blocks
        self._room = room
        self._clock = clock
        self._turns = Turns()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        """In order of rank."""
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
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence, *, forget: bool = False) -> None:
        """It is finished, failed or cancelled. ``forget``: do not share what it computed."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._blocks.free(sequence, forget=forget)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The work of one step. Empty only when there is no work."""
        self._displace()
        budget = _Budget(self._limits.max_rows, self._limits.max_logit_rows, self._limits.max_rows)
        preemptions = self.preemptions
        chunks = self._guess(self._decode(budget), budget)
        if chunks:
            budget.polite_rows = self._room(self._limits.max_rows - budget.rows)
            # Even a burst leaves its own first answers gaps of half a full step at most, as fast in all.
            budget.rows = min(budget.rows, (self._limits.max_rows + 1) // 2)
        return chunks + self._read(budget, may_admit=self.preemptions == preemptions)

    def _displace(self) -> None:
        """Less urgent answers make room for the most urgent of the waiting. Before any chunk is cut."""
        if not self._waiting:
            return
        urgent = most_entitled(self._waiting, self._held())
        victims = [seq for seq in self._running if seq.priority > urgent.priority and not seq.keeps_place]
        if not victims or not self._blocks.can_free_for(urgent, victims, reserve=len(self._running)):
            return
        while victims and not self._has_room(urgent):
            self._preempt(victims.pop())

    def _held(self) -> Counter[str]:
        return Counter(sequence.caller for sequence in self._running)

    def _has_room(self, sequence: Sequence) -> bool:
        # One block for each running sequence stays free, or the next steps would preempt this one.
        places = self._limits.max_sequences - len(self._running)
        return places > 0 and self._blocks.can_allocate(sequence, reserve=len(self._running))

    def _decode(self, budget: _Budget) -> list[Chunk]:
        chunks = []
        for sequence in [seq for seq in self._running if seq.remaining == 1]:
            if self._make_room(sequence):
                self._blocks.append(sequence)
                chunks += self._cut(sequence, budget, budget.rows, answers=True)
        return chunks

    def _guess(self, chunks: list[Chunk], budget: _Budget) -> list[Chunk]:
        """Answers with guessed tokens, from rows and blocks that nobody else needs."""
        spare = budget.logit_rows - (self._limits.max_sequences - len(chunks))
        for index, chunk in enumerate(chunks):
            guess = chunk.sequence.guess(min(spare, budget.rows))
            if guess and self._blocks.can_append(chunk.sequence, len(guess)):
                self._blocks.append(chunk.sequence, len(guess))
                spare -= len(guess)
                budget.logit_rows -= len(guess)
                budget.spend(len(guess))
                chunks[index] = replace(chunk, guess=guess)
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

    def _read(self, budget: _Budget, *, may_admit: bool) -> list[Chunk]:
        """Prompts. Half of the room is the first in rank's; the shorter and the more urgent get the rest."""
        prompts = [seq for seq in self._running if seq.remaining > 1]
        chunks: list[Chunk] = []
        if prompts:
            first, *others = prompts
            kept = min(first.remaining, (self._rows_for(first, budget) + 1) // 2)
            budget.spend(kept)
            ahead = sorted((seq for seq in others if seq.weight < first.weight), key=lambda seq: seq.weight)
            chunks += self._prefill(ahead, budget)
            if may_admit:
                chunks += self._prefill(self._admit(budget, before=first), budget)
            budget.spend(-kept)
            chunks += self._prefill([first, *(seq for seq in others if seq not in ahead)], budget)
        if may_admit:
            chunks += self._prefill(self._admit(budget), budget)
        return chunks

    def _prefill(self, sequences: Iterable[Sequence], budget: _Budget) -> list[Chunk]:
        return [
            chunk
            for sequence in sequences
            for chunk in self._cut(sequence, budget, self._rows_for(sequence, budget))
        ]

    def _rows_for(self, sequence: Sequence, budget: _Budget) -> int:
        """The whole step for a prompt that fits and came before any answer began, else what is polite."""
        others = [seq.began for seq in self._running if seq is not sequence and seq.began is not None]
        fits = sequence.remaining <= self._limits.max_rows
        if fits and sequence.came <= min(others, default=sequence.came):
            return budget.rows
        return min(budget.rows, budget.polite_rows)

    def _admit(self, budget: _Budget, before: Sequence | None = None) -> Iterator[Sequence]:
        """Of the waiting, while there are rows, places and blocks; only what goes ``before`` another."""
        while self._waiting:
            candidates = self._turns.candidates(self._waiting, self._held())
            sequence = next(filter(self._has_room, candidates), None)
            if sequence is None:
                self._note_lack()
                return
            if before is not None and sequence.weight >= before.weight:
                return
            if self._rows_for(sequence, budget) < 1:
                return
            yield self._enter(sequence)

    def _note_lack(self) -> None:
        """Who waits for a place, and not for rows alone, comes after the answers that begin meanwhile."""
        now = self._clock()
        for sequence in self._waiting:
            sequence.came = now

    def _enter(self, sequence: Sequence) -> Sequence:
        sequence.keeps_place |= self._turns.took(sequence, self._waiting)
        self._waiting.remove(sequence)
        self._blocks.allocate(sequence)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            sequence.queue_s = self._clock() - sequence.arrived
        bisect.insort(self._running, sequence, key=lambda other: other.rank)
        return sequence

    def _cut(self, sequence: Sequence, budget: _Budget, rows: int, *, answers: bool = False) -> list[Chunk]:
        """As much of a sequence as the rows allow: one chunk or none."""
        start, count = sequence.computed, min(sequence.remaining, rows)
        last = len(sequence.token_ids) - 1
        first_wanted = last
        if sequence.wants_prompt_choices:
            first_wanted = max(start, len(sequence.prompt_choices))
        count = min(count, first_wanted - start + budget.logit_rows)
        if count < 1:
            return []
        logit_rows = max(0, start + count - first_wanted)
        budget.spend(count)
        budget.logit_rows -= logit_rows
        return [Chunk(sequence, start, count, logit_rows, answers)]
