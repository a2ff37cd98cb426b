"""Backend ``mock``: no weights, deterministic tokens at a set rate, for client developers and protocol tests.

The answer repeats the prompt, then ends. Any model directory will do; one with a tokenizer gives text back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import msgspec

from contract.faults import Fault, FaultKind
from contract.serving import read_config, read_serving
from daemon.backends.base import (
    BackendStats,
    ModelInfo,
    ModelSpec,
    Progress,
    TokenChoice,
    TokenEvent,
    TokenRequest,
    TokenSampling,
)
from daemon.backends.options import read_options

_LOAD_STEP_S = 0.05
_FLUSH_S = 0.05
"""Lets the tokens before a crash reach their readers."""
_CHOSEN_LOGPROB = math.log(0.5)


class MockOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the backend, from the ``serving`` block or the daemon's settings."""

    tokens_per_s: float = 50.0
    """Of each request; 0 is as fast as possible."""
    first_token_s: float = 0.0
    """Further delay before the first token."""
    load_s: float = 0.0
    context_len: int | None = None
    """Default: ``limits.max_seq_len`` of the model, else 4096."""
    vocab_size: int | None = None
    """Default: ``vocab_size`` of config.json, else 32000."""
    max_sequences: int = 256
    """Requests answered at a time; others wait."""
    answer_tokens: int | None = None
    """Tokens before the end token; default: as many as the prompt has."""
    answer_ids: list[int] | None = None
    """Answer with these tokens, repeated as needed, instead of the prompt's."""
    fail_load: str | None = None
    """Loading fails with this message."""
    fail_after: int | None = None
    """Every request fails after this many tokens."""
    crash_after: int | None = None
    """The process kills itself (SIGKILL) when a request has got this many tokens."""


class MockBackend:
    """A ``TokenBackend`` without a model."""

    def __init__(self) -> None:
        self._options = MockOptions()
        self._context_len = 0
        self._vocab_size = 0
        self._slots = asyncio.Semaphore(1)
        self._waiting = 0
        self._unloaded = asyncio.Event()
        self._running: dict[int, int] = {}
        self._tokens_generated = 0
        self._prompt_tokens = 0

    async def load(self, spec: ModelSpec, progress: Progress) -> ModelInfo:
        self._options = options = read_options(MockOptions, spec.options, "mock")
        config = read_config(spec.path) if (spec.path / "config.json").exists() else {}
        limit = read_serving(spec.path).limits.max_seq_len if "serving" in config else 4096
        self._context_len = options.context_len or limit
        self._vocab_size = options.vocab_size or int(config.get("vocab_size", 32000))
        self._slots = asyncio.Semaphore(options.max_sequences)
        steps = math.ceil(options.load_s / _LOAD_STEP_S)
        for step in range(steps):
            progress(step / steps, "pretending to read weights")
            await asyncio.sleep(options.load_s / steps)
        if options.fail_load is not None:
            raise Fault(FaultKind.INVALID_MODEL, options.fail_load, "remove the option fail_load")
        progress(1.0, "ready")
        return ModelInfo(
            vocab_size=self._vocab_size,
            context_len=self._context_len,
            max_sequences=options.max_sequences,
            kv_tokens=options.max_sequences * self._context_len,
            memory_bytes=0,
            dtype="none",
        )

    async def generate(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        self._check(request)
        submitted = time.monotonic()
        async with self._slot():
            queue_s = time.monotonic() - submitted
            key = id(request)
            self._running[key] = len(request.prompt_ids)
            self._prompt_tokens += len(request.prompt_ids)
            try:
                async with contextlib.aclosing(self._paced(request, queue_s)) as events:
                    async for event in events:
                        self._running[key] += len(event.token_ids)
                        self._tokens_generated += len(event.token_ids)
                        yield event
            finally:
                del self._running[key]

    async def stats(self) -> BackendStats:
        capacity = max(1, self._options.max_sequences * self._context_len)
        return BackendStats(
            running=len(self._running),
            waiting=self._waiting,
            kv_used_fraction=sum(self._running.values()) / capacity,
            tokens_generated=self._tokens_generated,
            prompt_tokens=self._prompt_tokens,
        )

    async def unload(self) -> None:
        self._unloaded.set()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    def _check(self, request: TokenRequest) -> None:
        length = len(request.prompt_ids)
        if length + 1 > self._context_len:
            message = f"the prompt has {length} tokens; the model's context is {self._context_len}"
            raise Fault(FaultKind.CONTEXT_OVERFLOW, message, "shorten the prompt")
        bad = next((token for token in request.prompt_ids if not 0 <= token < self._vocab_size), None)
        if bad is not None:
            message = f"token id {bad} is outside the vocabulary of {self._vocab_size}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "use the model's own tokenizer")

    async def _paced(self, request: TokenRequest, queue_s: float) -> AsyncGenerator[TokenEvent, None]:
        """The answer's events, each at its time."""
        rate = self._options.tokens_per_s
        due = time.monotonic() + self._options.first_token_s
        for position, event in enumerate(self._answer(request)):
            due += 1.0 / rate if rate > 0 else 0.0
            await self._wait_until(due)
            await self._inject_failure(position)
            if position == 0:
                yield msgspec.structs.replace(event, queue_s=queue_s)
            else:
                yield event

    async def _wait_until(self, due: float) -> None:
        delay = due - time.monotonic()
        if delay > 0 and not self._unloaded.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._unloaded.wait(), delay)
        else:
            await asyncio.sleep(0)
        if self._unloaded.is_set():
            raise Fault(FaultKind.NOT_READY, "the model is being unloaded", "load it again, then try again")

    async def _inject_failure(self, tokens_sent: int) -> None:
        if self._options.crash_after is not None and tokens_sent >= self._options.crash_after:
            await asyncio.sleep(_FLUSH_S)
            os.kill(os.getpid(), signal.SIGKILL)
        if self._options.fail_after is not None and tokens_sent >= self._options.fail_after:
            message = f"the mock backend was told to fail after {self._options.fail_after} tokens"
            raise Fault(FaultKind.INTERNAL, message, "remove the option fail_after")

    def _answer(self, request: TokenRequest) -> Iterator[TokenEvent]:
        sampling = request.sampling
        room = min(sampling.max_tokens, self._context_len - len(request.prompt_ids))
        if room < 1:
            yield TokenEvent(token_ids=[], prompt_choices=self._prompt_choices(request), finish="length")
            return
        for position, token in enumerate(self._tokens(request)):
            stopped = token in sampling.stop_token_ids
            full = position + 1 >= room
            yield TokenEvent(
                token_ids=[token],
                choices=_choices([token], sampling.logprobs, self._vocab_size),
                prompt_choices=self._prompt_choices(request) if position == 0 else None,
                finish="stop" if stopped else "length" if full else None,
            )
            if stopped or full:
                return

    def _tokens(self, request: TokenRequest) -> Iterator[int]:
        """The source repeated, then a stop token if there is one, else for ever."""
        sampling = request.sampling
        stops = set(sampling.stop_token_ids)
        source = self._options.answer_ids or request.prompt_ids
        body = [token for token in source if token not in stops] or ([] if stops else [0])
        wanted = len(body) if self._options.answer_tokens is None else self._options.answer_tokens
        wanted = max(wanted, sampling.min_tokens)
        position = 0
        while body and (position < wanted or not stops):
            yield body[position % len(body)]
            position += 1
        yield _end_token(sampling)

    def _prompt_choices(self, request: TokenRequest) -> list[TokenChoice] | None:
        return _choices(request.prompt_ids[1:], request.sampling.prompt_logprobs, self._vocab_size)


def _end_token(sampling: TokenSampling) -> int:
    return sampling.stop_token_ids[0] if sampling.stop_token_ids else 0


def _choices(tokens: list[int], top: int | None, vocab_size: int) -> list[TokenChoice] | None:
    """Each token has probability 1/2, its neighbours by id 1/4, 1/8 and so on."""
    if top is None:
        return None
    ranks = range(min(top, vocab_size))
    return [
        TokenChoice(
            token_id=token,
            logprob=_CHOSEN_LOGPROB,
            top=tuple(((token + rank) % vocab_size, _CHOSEN_LOGPROB * (rank + 1)) for rank in ranks),
        )
        for token in tokens
    ]
