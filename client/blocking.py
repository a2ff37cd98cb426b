"""``AsyncClient`` for programs without an event loop: each call runs it on a private loop's thread."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from client.address import DEFAULT_HTTP, Address
from client.aio import AsyncClient
from client.options import MessageLike, OptionFields
from client.perplexity import Tokens
from client.results import Answer, Chunk, Health, ModelCard
from client.streams import AsyncStream

T = TypeVar("T")


class Client:
    """Sends requests to a MindPort daemon over HTTP or gRPC.

    >>> with Client("http://127.0.0.1:1025") as client:
    ...     answer = client.generate("生抽与老抽的区别？", model="telechat2_tiny")

    The parameters are those of ``AsyncClient``. May be used from several threads. Ctrl-C while waiting
    cancels the request in the engine.
    """

    def __init__(
        self,
        address: str = DEFAULT_HTTP,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retries: int = 2,
    ) -> None:
        self._loop = _LoopThread()
        self._client: AsyncClient = self._loop.run(
            lambda: _made(address, api_key=api_key, timeout_s=timeout_s, retries=retries)
        )
        self._loop.before_close(self._client.aclose)

    @property
    def address(self) -> Address:
        return self._client.address

    def generate(self, prompt: str, *, raw: bool = False, **options: Unpack[OptionFields]) -> Answer:
        """Answer one prompt: as a chat of a single turn or, with ``raw``, by continuing the text."""
        return self._loop.run(lambda: self._client.generate(prompt, raw=raw, **options))

    def stream(self, prompt: str, *, raw: bool = False, **options: Unpack[OptionFields]) -> Stream:
        """Like ``generate``, chunk by chunk. Nothing is sent before the first chunk is asked for."""
        return Stream(self._loop, self._client.stream(prompt, raw=raw, **options))

    def chat(self, messages: Iterable[MessageLike], **options: Unpack[OptionFields]) -> Answer:
        """Answer the last turn of a chat."""
        return self._loop.run(lambda: self._client.chat(messages, **options))

    def stream_chat(self, messages: Iterable[MessageLike], **options: Unpack[OptionFields]) -> Stream:
        """Like ``chat``, chunk by chunk."""
        return Stream(self._loop, self._client.stream_chat(messages, **options))

    def models(self) -> list[ModelCard]:
        """Every version of every model the server knows, ready or not."""
        return self._loop.run(self._client.models)

    def load(self, model: str, adapter: tuple[str, str] | None = None) -> None:
        """Load a model, or an adapter beside it. As ``AsyncClient.load``."""
        self._loop.run(lambda: self._client.load(model, adapter))

    def unload(self, model: str) -> None:
        """Let a model's requests finish and unload it."""
        self._loop.run(lambda: self._client.unload(model))

    def unload_adapter(self, name: str) -> None:
        """Serve an adapter no longer. As ``AsyncClient.unload_adapter``."""
        self._loop.run(lambda: self._client.unload_adapter(name))

    def tokenize(self, text: str, model: str | None = None) -> Tokens:
        """The text as the model reads it, control strings as their tokens."""
        return self._loop.run(lambda: self._client.tokenize(text, model))

    def score(self, ids: Sequence[int], model: str | None = None) -> list[float]:
        """The log-probability of every token but the first, given those before it."""
        return self._loop.run(lambda: self._client.score(ids, model))

    def health(self, model: str | None = None) -> Health:
        """Whether the server, and one model if named, is ready. Raises ``ConnectError`` if nobody answers."""
        return self._loop.run(lambda: self._client.health(model))

    def wait_ready(self, timeout_s: float, model: str | None = None) -> Health:
        """Wait until the server, or the model if named, is ready. Raises as ``AsyncClient.wait_ready``."""
        return self._loop.run(lambda: self._client.wait_ready(timeout_s, model))

    def close(self) -> None:
        """Cancel what is under way and close the connections. Safe to call twice."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stream(Iterator[Chunk]):
    """The chunks of one answer. Leaving the ``with`` block, or ``cancel``, cancels in the engine."""

    def __init__(self, loop: _LoopThread, stream: AsyncStream) -> None:
        self._loop = loop
        self._stream = stream

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    def __next__(self) -> Chunk:
        chunk = self._loop.run(lambda: _next(self._stream))
        if chunk is None:
            raise StopIteration
        return chunk

    def cancel(self) -> None:
        """Stop the answer here and in the engine. Safe to call twice, from any thread, or after the end."""
        if self._loop.open:
            self._loop.run(self._stream.cancel)

    close = cancel

    def answer(self) -> Answer:
        """Read to the end and return the whole answer; after ``cancel``, what had come by then."""
        return self._loop.run(self._stream.answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


async def _made(address: str, *, api_key: str | None, timeout_s: float | None, retries: int) -> AsyncClient:
    """On the loop, because a gRPC channel belongs to the loop it was made on."""
    return AsyncClient(address, api_key=api_key, timeout_s=timeout_s, retries=retries)


async def _next(stream: AsyncStream) -> Chunk | None:
    """``StopAsyncIteration`` cannot cross between threads in a future."""
    return await anext(stream, None)


class _LoopThread:
    """An event loop on a thread of its own, stopped at the latest when its owner is collected."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="mindport-client", daemon=True)
        thread.start()
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._outcomes: set[Future[Any]] = set()
        """Of what callers wait for."""
        self._finalizer = weakref.finalize(self, _stop, self._loop, thread, self._closers, self._outcomes)

    @property
    def open(self) -> bool:
        return self._finalizer.alive

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await on the loop what ``work`` gives there, and return it. An interrupt cancels it.

        ``work`` is called on the loop's thread: an interrupt could lose a coroutine that is made here.
        """
        outcome: Future[T] = Future()
        self._outcomes.add(outcome)
        outcome.add_done_callback(self._outcomes.discard)
        try:
            if not self.open:
                raise RuntimeError("the client is closed")
            self._loop.call_soon_threadsafe(self._begin, work, outcome)
            return outcome.result()
        except BaseException:
            outcome.cancel()
            raise

    def before_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have this awaited on the loop before it ends."""
        self._closers.append(closer)

    def close(self) -> None:
        self._finalizer()

    def _begin(self, work: Callable[[], Awaitable[T]], outcome: Future[T]) -> None:
        """On the loop: start the work and settle its outcome. A cancelled outcome cancels the work."""
        if outcome.cancelled() or not self.open:
            outcome.cancel()
            return
        loop = self._loop
        task = loop.create_task(_awaited(work))

        def settle(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                outcome.cancel()
                return
            error = task.exception()
            if not outcome.set_running_or_notify_cancel():
                return
            if error is None:
                outcome.set_result(task.result())
            else:
                outcome.set_exception(error)

        def abandon(outcome: Future[T]) -> None:
            if outcome.cancelled() and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

        task.add_done_callback(settle)
        outcome.add_done_callback(abandon)


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _stop(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    closers: list[Callable[[], Awaitable[None]]],
    outcomes: set[Future[Any]],
) -> None:
    """Cancel every task, let their clean-up run, and end the thread. Nobody is left waiting."""
    if threading.current_thread() is thread:
        # The garbage collector ran here: the thread cannot wait for itself.
        loop.call_soon(loop.stop)
        return
    asyncio.run_coroutine_threadsafe(_wind_up(closers), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    for outcome in outcomes.copy():  # handed over when the loop had no turn left
        outcome.cancel()


async def _wind_up(closers: list[Callable[[], Awaitable[None]]]) -> None:
    current = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not current]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(closer() for closer in closers), return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
