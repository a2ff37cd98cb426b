"""The engine: schedule, execute, sample, emit; one step after the other, in a thread of its own.

Other threads hand in orders through a queue and get events through ``emit``. Knows nothing of asyncio or
MindSpore.
"""

from __future__ import annotations

import copy
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.faults import Fault, FaultKind
from daemon.backends.base import BackendStats, TokenEvent, TokenRequest
from daemon.backends.ms.block_manager import BlockManager
from daemon.backends.ms.logprobs import Logits, choices
from daemon.backends.ms.pace import Pace
from daemon.backends.ms.prompt_lookup import PromptLookup
from daemon.backends.ms.sampler import Sampled, sample
from daemon.backends.ms.scheduler import Chunk, Limits, Scheduler
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.sequence import Sequence
from daemon.backends.ms.shelf import AdapterShelf
from daemon.engine_options import DEFAULTS

MAX_FAILED_STEPS = 3
"""In a row; then the engine is taken for broken."""

_log = logging.getLogger(__name__)

Outcome = TokenEvent | Fault
Emit = Callable[[list[tuple[int, Outcome]]], None]
"""Called from the engine's thread, once a step, with what each request got."""


class Runner(Protocol):
    """What the engine needs of ``runner.ModelRunner``."""

    vocab_size: int
    block_size: int
    num_blocks: int
    max_rows: int
    max_logit_rows: int

    def rope_for(self, prompt_len: int) -> tuple[float, float]: ...

    likeliest: NDArray[np.int64] | None
    """The token with the largest logit of each row of the last step, where the runner knows it."""

    def execute(self, segments: list[Segment]) -> Logits: ...

    def free_adapter(self, adapter: int) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    context_len: int
    max_sequences: int = DEFAULTS.max_sequences
    prefill_slowdown: float = DEFAULTS.prefill_slowdown
    prefix_cache: bool = DEFAULTS.prefix_cache
    prompt_lookup: int = DEFAULTS.prompt_lookup


class Engine:
    """Continuous batching over one runner."""

    def __init__(
        self,
        runner: Runner,
        settings: EngineSettings,
        emit: Emit,
        give_up: Callable[[str], None],
    ) -> None:
        """``give_up`` is called with the reason when step after step fails; it should end the process."""
        self._runner = runner
        self._emit = emit
        self._give_up = give_up
        self._blocks = BlockManager(runner.num_blocks, runner.block_size, prefix_cache=settings.prefix_cache)
        self._max_len = min(settings.context_len, self._blocks.capacity)
        self._context_len = settings.context_len
        self.adapters = AdapterShelf(runner.free_adapter)
        self._prompt_lookup = settings.prompt_lookup
        self.max_sequences = min(settings.max_sequences, runner.max_rows, runner.max_logit_rows)
        limits = Limits(
            max_sequences=self.max_sequences,
            max_rows=runner.max_rows,
            max_logit_rows=runner.max_logit_rows,
        )
        self._pace = Pace(settings.prefill_slowdown)
        self._scheduler = Scheduler(limits, self._blocks, self._pace.room)
        self._sequences: dict[int, Sequence] = {}
        self._outcomes: list[tuple[int, Outcome]] = []
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopped = False
        self._failed_steps = 0
        self._tokens_generated = self._prompt_tokens = self._prefix_hit_tokens = 0
        self._guessed_tokens = self._right_guesses = 0
        self._steps = 0
        self._stats = BackendStats()

    @property
    def stats(self) -> BackendStats:
        """As of the last step."""
        return self._stats

    def start(self) -> None:
        self._thread.start()

    def submit(self, number: int, request: TokenRequest) -> None:
        """Queue a request; its events come under ``number``, which must increase. Raises ``Fault``."""
        self._check(request)
        adapter = self.adapters.take(request.adapter)
        self._orders.put(functools.partial(self._add, number, request, time.monotonic(), adapter))

    def cancel(self, number: int) -> None:
        """No further events after the step that is being computed. Unknown numbers are over already."""
        self._orders.put(functools.partial(self._cancel, number))

    def stop(self) -> None:
        """Fail what is in flight and end the thread, after the step that is being computed."""
        self._orders.put(self._stop)

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the thread to end. After ``stop``."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped:
            self.take_orders(wait=not self._scheduler.has_work)
            if self._scheduler.has_work:
                self.step()

    def take_orders(self, *, wait: bool = False) -> None:
        """What other threads have asked for since the last step."""
        try:
            self._orders.get(block=wait)()
            while True:
                self._orders.get_nowait()()
        except queue.Empty:
            self._publish()

    def step(self) -> None:
        """One step of the model for everyone who is running."""
        begun = time.perf_counter()
        self._steps += 1
        try:
            chunks = self._scheduler.schedule()
            if not chunks:
                raise RuntimeError("there is work, and none of it can be scheduled")
            succeeded = self._compute(chunks)
            self._observe(chunks, time.perf_counter() - begun)
        except Exception as error:
            # A defect of ours: who caused it is unknown, and nobody may be left waiting.
            succeeded = False
            for sequence in self._scheduler.sequences:
                self._fail(sequence, error)
        self._publish()
        self._failed_steps = 0 if succeeded else self._failed_steps + 1
        if self._failed_steps >= MAX_FAILED_STEPS:
            self._give_up(f"{self._failed_steps} steps failed in a row")

    def _observe(self, chunks: list[Chunk], seconds: float) -> None:
        answer_rows = sum(chunk.rows for chunk in chunks if chunk.answers)
        prompt_rows = sum(chunk.rows for chunk in chunks if not chunk.answers)
        self._pace.observe(answer_rows, prompt_rows, seconds)

    def _compute(self, chunks: list[Chunk]) -> bool:
        """Execute and advance. ``False`` if the runner seems broken: not even one token can be computed."""
        try:
            logits = self._runner.execute([chunk.segment() for chunk in chunks])
        except Exception as error:
            if len(chunks) == 1:
                works = self._works(chunks[0].segment())
                self._fail(chunks[0].sequence, error)
                return works
            # One sequence may be to blame: alone, only that one fails. Computing tokens again is harmless.
            outcomes = [self._compute([chunk]) for chunk in chunks]
            return any(outcomes)
        self._advance(chunks, logits)
        return True

    def _works(self, failed: Segment) -> bool:
        """Whether one token can be computed, in the last block of what could not: nobody shares that."""
        probe = Segment([0], 0, failed.block_table[-1:], 1, failed.rope_base, failed.rope_scale)
        try:
            self._runner.execute([probe])
        except Exception as error:
            _log.warning("a token on its own fails, too: %s", error)
            return False
        return True

    def _advance(self, chunks: list[Chunk], logits: Logits) -> None:
        """Read the logits and move every sequence on."""
        pending: list[tuple[Chunk, int]] = []
        row = 0
        for chunk in chunks:
            first, row = row, row + chunk.logit_rows
            if not self._take_prompt_choices(chunk, logits[first:row]):
                self._fail(chunk.sequence, _not_finite())
            elif chunk.samples:
                pending.append((chunk, row - 1))
            else:
                self._note_computed(chunk.sequence, chunk.end)
            row += len(chunk.guess)
        right = 0
        while pending:
            # A guess counts if it is what is chosen anyway, greedily or by lot: answers are the same without.
            rows = [at + right for _, at in pending]
            chosen_from = logits if len(rows) == len(logits) else logits[rows]
            known = self._runner.likeliest
            likeliest = known[rows] if known is not None else None
            sampled = sample(chosen_from, [chunk.sequence for chunk, _ in pending], likeliest)
            together = zip(pending, sampled, strict=True)
            pending = [one for one, token in together if self._take_next(one[0], right, token)]
            right += 1

    def _take_next(self, chunk: Chunk, right: int, sampled: Sampled | None) -> bool:
        """One token after ``right`` guessed ones. ``True`` if it was guessed and the logits go on from it."""
        sequence = chunk.sequence
        if sampled is None:
            self._fail(sequence, _not_finite())
            return False
        self._note_computed(sequence, chunk.end + right)
        self._take_token(sequence, sampled)
        if not chunk.guess:
            return False
        guessed = right < len(chunk.guess) and chunk.guess[right] == sampled.token_id
        if guessed and sequence.number in self._sequences:
            return True
        right += guessed
        self._guessed_tokens += len(chunk.guess)
        self._right_guesses += right
        if sequence.lookup is not None:
            sequence.lookup.learn(len(chunk.guess), right, len(sequence.token_ids))
        return False

    def _note_computed(self, sequence: Sequence, tokens: int) -> None:
        sequence.computed = tokens
        self._blocks.commit(sequence)

    def _take_prompt_choices(self, chunk: Chunk, logits: Logits) -> bool:
        """Log-probabilities of the prompt tokens that follow this chunk's rows. ``False``: not finite."""
        sequence = chunk.sequence
        if not sequence.wants_prompt_choices or not chunk.logit_rows:
            return True
        done = len(sequence.prompt_choices)
        targets = sequence.token_ids[done + 1 : min(chunk.end + 1, sequence.prompt_len)]
        logits = logits[: len(targets)]
        if not np.isfinite(logits.max(axis=1, initial=-np.inf)).all():
            return False
        top = sequence.sampling.prompt_logprobs or 0
        sequence.prompt_choices += choices(logits, targets, top)
        return True

    def _take_token(self, sequence: Sequence, sampled: Sampled) -> None:
        """The next token of a sequence, and perhaps its last."""
        sampling = sequence.sampling
        first = sequence.answer_len == 0
        if sampling.max_tokens < 1:
            event = TokenEvent([], finish="length")
        else:
            sequence.token_ids.append(sampled.token_id)
            event = TokenEvent(
                [sampled.token_id],
                choices=[sampled.choice] if sampled.choice is not None else None,
                finish=self._finish_of(sequence),
            )
        self._tokens_generated += len(event.token_ids)
        if first:
            sequence.began = time.monotonic()
            event = self._with_opening(sequence, event)
        self._outcomes.append((sequence.number, event))
        if event.finish is not None:
            self._remove(sequence)

    def _finish_of(self, sequence: Sequence) -> Literal["stop", "length"] | None:
        sampling = sequence.sampling
        if sequence.token_ids[-1] in sampling.stop_token_ids:
            return "stop"
        return "length" if len(sequence.token_ids) >= sequence.max_len else None

    def _with_opening(self, sequence: Sequence, event: TokenEvent) -> TokenEvent:
        """What only the first event tells."""
        cached = sequence.cached_tokens or 0
        self._prompt_tokens += sequence.prompt_len
        self._prefix_hit_tokens += cached
        wanted = sequence.sampling.prompt_logprobs is not None
        return msgspec.structs.replace(
            event,
            prompt_choices=sequence.prompt_choices if wanted else None,
            cached_tokens=cached,
            queue_s=sequence.queue_s,
        )

    def _check(self, request: TokenRequest) -> None:
        """Refuses what can never be computed, instead of letting it wait for ever."""
        tokens, capacity = request.prompt_ids, self._blocks.capacity
        if not tokens:
            raise Fault(FaultKind.INVALID_REQUEST, "the prompt has no tokens", "send at least one")
        if len(tokens) + 1 > self._context_len:
            message = f"the prompt has {len(tokens)} tokens; the model's context is {self._context_len}"
            raise Fault(FaultKind.CONTEXT_OVERFLOW, message, "shorten the prompt")
        if len(tokens) + 1 > capacity:
            message = f"the prompt has {len(tokens)} tokens; the KV cache holds {capacity}"
            raise Fault(FaultKind.OUT_OF_MEMORY, message, "shorten the prompt, or raise kv_cache_bytes")
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self._runner.vocab_size:
            bad = low if low < 0 else high
            message = f"token id {bad} is outside the vocabulary of {self._runner.vocab_size}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "use the model's own tokenizer")

    def _add(self, number: int, request: TokenRequest, arrived: float, adapter: int) -> None:
        try:
            rope = self._runner.rope_for(len(request.prompt_ids))
        except Exception as error:
            self.adapters.give_back(adapter)
            self._outcomes.append((number, _fault_of(error)))
            return
        self._sequences[number] = sequence = Sequence(number, request, rope, arrived, adapter)
        sequence.max_len = min(self._max_len, sequence.prompt_len + request.sampling.max_tokens)
        if self._prompt_lookup:
            sequence.lookup = PromptLookup(self._prompt_lookup)
        self._scheduler.add(sequence)

    def _cancel(self, number: int) -> None:
        if (sequence := self._sequences.get(number)) is not None:
            self._remove(sequence)

    def _stop(self) -> None:
        self._stopped = True
        for sequence in self._scheduler.sequences:
            hint = "load it again, then try again"
            self._fail(sequence, Fault(FaultKind.NOT_READY, "the model is being unloaded", hint))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """What it has computed so far may be bad: others must not find it in the prefix cache."""
        self._outcomes.append((sequence.number, _fault_of(error)))
        self._remove(sequence, forget=True)

    def _remove(self, sequence: Sequence, *, forget: bool = False) -> None:
        self._scheduler.remove(sequence, forget=forget)
        if self._sequences.pop(sequence.number, None) is not None:
            self.adapters.give_back(sequence.adapter)

    def _publish(self) -> None:
        """Let others see the outcome of a step."""
        self._stats = BackendStats(
            steps=self._steps,
            tokens_generated=self._tokens_generated,
            prompt_tokens=self._prompt_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            kv_used_fraction=self._blocks.used_fraction,
            preemptions=self._scheduler.preemptions,
            guessed_tokens=self._guessed_tokens,
            right_guesses=self._right_guesses,
        )
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            self._emit(outcomes)


def _fault_of(error: Exception) -> Fault:
    if isinstance(error, Fault):
        return copy.copy(error)
    _log.error("a step failed", exc_info=error)
    message = f"the engine failed: {type(error).__name__}: {error}"
    return Fault(FaultKind.INTERNAL, message, "try again; the daemon's log has more")


def _not_finite() -> Fault:
    message = "the model computed values that are not finite for this request"
    return Fault(FaultKind.INTERNAL, message, "try another prompt; if it happens again, verify the weights")
