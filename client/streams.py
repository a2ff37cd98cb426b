"""An answer while it is written: iterate for chunks, cancel at any time, ask for the whole at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Self

from client.results import Answer, Chunk, Timings, TokenScore
from contract.generation import GenerateRequest, Usage


class AsyncStream(AsyncIterator[Chunk]):
    """The chunks of one answer. Leaving the ``async with`` block, or ``cancel``, cancels in the engine."""

    def __init__(self, request: GenerateRequest, chunks: AsyncGenerator[Chunk, None]) -> None:
        self.request_id = request.request_id
        self._chunks = chunks
        self._pending: asyncio.Future[Chunk] | None = None
        self._cancelled = False
        self._progress = _Progress()

    async def __anext__(self) -> Chunk:
        if self._cancelled:
            raise StopAsyncIteration
        self._progress.start()
        self._pending = asyncio.ensure_future(anext(self._chunks))
        try:
            chunk = await self._pending
        except asyncio.CancelledError:
            if self._cancelled:
                raise StopAsyncIteration from None
            raise
        except StopAsyncIteration:
            self._progress.end()
            raise
        finally:
            self._pending = None
        self._progress.add(chunk)
        return chunk

    async def cancel(self) -> None:
        """Stop the answer here; the engine stops too. Safe to call twice, from any task, or after the end."""
        if not self._progress.ended:
            self._cancelled = True
        if self._pending is not None and not self._pending.done():
            self._pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await asyncio.wait([self._pending])
        await self._chunks.aclose()
        self._progress.end()

    async def answer(self) -> Answer:
        """Read to the end and return the whole answer; after ``cancel``, what had come by then."""
        async for _ in self:
            pass
        return self._progress.answer(self.request_id, cancelled=self._cancelled)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()


class _Progress:
    """What has come so far, and when."""

    def __init__(self) -> None:
        self.ended = False
        self._texts: list[str] = []
        self._scores: list[TokenScore] = []
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._model = ""
        self._started_at: float | None = None
        self._first_at: float | None = None
        self._last_at = 0.0

    def start(self) -> None:
        if self._started_at is None:
            self._started_at = self._last_at = time.monotonic()

    def add(self, chunk: Chunk) -> None:
        self._last_at = time.monotonic()
        if self._first_at is None and (chunk.text or chunk.finish_reason):
            self._first_at = self._last_at
        self._texts.append(chunk.text)
        self._scores.extend(chunk.logprobs)
        self._finish_reason = chunk.finish_reason or self._finish_reason
        self._usage = chunk.usage or self._usage
        self._model = chunk.model or self._model

    def end(self) -> None:
        self.ended = True

    def answer(self, request_id: str, *, cancelled: bool) -> Answer:
        started = self._last_at if self._started_at is None else self._started_at
        first = self._last_at if self._first_at is None else self._first_at
        return Answer(
            text="".join(self._texts),
            finish_reason=self._finish_reason or ("cancelled" if cancelled else "stop"),
            usage=self._usage,
            model=self._model,
            timings=Timings(first - started, self._last_at - started),
            request_id=request_id,
            logprobs=tuple(self._scores),
        )
