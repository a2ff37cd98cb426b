"""The client itself: options in, answers out, with retries and deadlines, over any transport.

``client.blocking`` is a facade over this module; there is no second implementation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar, Unpack

from client.address import DEFAULT_HTTP, Address, parse_address
from client.errors import (
    ClientError,
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    NotReadyError,
    UnauthenticatedError,
    request_error,
)
from client.options import MessageLike, OptionFields, chat_request, options_of, text_request
from client.perplexity import Tokens
from client.results import Answer, Chunk, Health, ModelCard
from client.retry import RetryPolicy
from client.streams import AsyncStream
from client.transport import Transport
from contract.faults import FaultKind
from contract.generation import GenerateRequest

T = TypeVar("T")

_CONTROL_TIMEOUT_S = 10.0
"""For questions that a healthy server answers at once."""
_POLL_S = 0.25


class AsyncClient:
    """Sends requests to a MindPort daemon over HTTP or gRPC.

    Parameters
    ----------
    address: ``http://HOST:PORT``, ``https://``, ``grpc://`` or ``grpcs://``.
    api_key: sent with every request, if given.
    timeout_s: for a whole answer, from sending to its last chunk; ``None`` waits as long as it takes.
    retries: how often a request is sent again that the server cannot have begun. 0 turns that off.
    transport: instead of the one the address asks for; for tests.

    Use it as ``async with AsyncClient() as client:``, or call ``aclose``.
    """

    def __init__(
        self,
        address: str = DEFAULT_HTTP,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retries: int = 2,
        transport: Transport | None = None,
    ) -> None:
        self.address: Address = parse_address(address)
        self._timeout_s = timeout_s
        self._retry = RetryPolicy(retries=retries)
        self._transport = transport or open_transport(self.address, api_key)

    async def generate(self, prompt: str, *, raw: bool = False, **options: Unpack[OptionFields]) -> Answer:
        """Answer one prompt: as a chat of a single turn or, with ``raw``, by continuing the text."""
        return await self._whole(_prompt_request(prompt, raw, options))

    def stream(self, prompt: str, *, raw: bool = False, **options: Unpack[OptionFields]) -> AsyncStream:
        """Like ``generate``, chunk by chunk. Nothing is sent before the first chunk is asked for."""
        return self._stream(_prompt_request(prompt, raw, options))

    async def chat(self, messages: Iterable[MessageLike], **options: Unpack[OptionFields]) -> Answer:
        """Answer the last turn of a chat."""
        return await self._whole(chat_request(messages, options_of(options)))

    def stream_chat(self, messages: Iterable[MessageLike], **options: Unpack[OptionFields]) -> AsyncStream:
        """Like ``chat``, chunk by chunk."""
        return self._stream(chat_request(messages, options_of(options)))

    async def models(self) -> list[ModelCard]:
        """Every version of every model the server knows, ready or not."""
        return await self._control(self._transport.models)

    async def load(self, model: str, adapter: tuple[str, str] | None = None) -> None:
        """Load or reload a model (``NAME`` or ``NAME@VERSION``) and wait until it is ready.

        With ``adapter`` = (name, folder on the server's machine) the loaded model serves that LoRA adapter
        besides, under its own name. ``timeout_s`` of the client is the limit. Raises ``ClientError``.
        """
        if adapter is None:
            await self._asked(lambda: self._transport.load(model), self._timeout_s)
        else:
            await self._asked(lambda: self._transport.load_adapter(model, *adapter), self._timeout_s)

    async def unload(self, model: str) -> None:
        """Let a model's requests finish and unload it."""
        await self._asked(lambda: self._transport.unload(model), self._timeout_s)

    async def unload_adapter(self, name: str) -> None:
        """Serve an adapter no longer; running requests keep it. Raises ``ModelNotFoundError``."""
        await self._control(lambda: self._transport.unload_adapter(name))

    async def tokenize(self, text: str, model: str | None = None) -> Tokens:
        """The text as the model reads it, control strings as their tokens."""
        return await self._control(lambda: self._transport.tokenize(text, model))

    async def score(self, ids: Sequence[int], model: str | None = None) -> list[float]:
        """The log-probability of every token but the first, given those before it."""
        return await self._asked(lambda: self._transport.score(ids, model), self._timeout_s)

    async def health(self, model: str | None = None) -> Health:
        """Whether the server, and one model if named, is ready. Raises ``ConnectError`` if nobody answers."""
        return await self._control(lambda: self._transport.health(model))

    async def wait_ready(self, timeout_s: float, model: str | None = None) -> Health:
        """Wait until the server, or the model if named, is ready; a server that is not there yet may come.

        Raises ``NotReadyError`` when the time has passed, ``ModelNotFoundError`` at once if a live server
        does not know the model.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                health = await _within(deadline + 1.0, self._transport.health(model))
                if health.ok:
                    return health
                reason = await self._why_not_ready(health)
            except (ConnectError, ConnectionLostError, DeadlineError, NotReadyError) as error:
                reason = error.message
            if time.monotonic() >= deadline:
                subject = f"model {model!r}" if model else "the server"
                waited = f" after {timeout_s:g} s" if timeout_s else ""
                message = f"{subject} is not ready{waited}: {reason}"
                raise NotReadyError(FaultKind.NOT_READY, message, "see why with: daemon status")
            await asyncio.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _whole(self, request: GenerateRequest) -> Answer:
        async with AsyncStream(request, self._chunks(request, stream=False)) as stream:
            return await stream.answer()

    def _stream(self, request: GenerateRequest) -> AsyncStream:
        return AsyncStream(request, self._chunks(request, stream=True))

    async def _chunks(self, request: GenerateRequest, *, stream: bool) -> AsyncGenerator[Chunk, None]:
        """The transport's chunks, begun again where that is safe, each waited for no longer than allowed."""
        timeout_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        attempt = 0
        while True:
            begun = False
            async with aclosing(self._transport.generate(request, stream=stream)) as chunks:
                try:
                    while chunk := await _within(deadline, anext(chunks, None), request.request_id):
                        begun = True
                        yield chunk
                    return
                except ClientError as error:
                    delay_s = None if begun else self._retry.delay_s(error, attempt)
                    if delay_s is None:
                        raise
            attempt += 1
            await _within(deadline, asyncio.sleep(delay_s), request.request_id)

    async def _control(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await self._asked(ask, min(_CONTROL_TIMEOUT_S, self._timeout_s or _CONTROL_TIMEOUT_S))

    async def _asked(self, ask: Callable[[], Awaitable[T]], limit_s: float | None) -> T:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        attempt = 0
        while True:
            try:
                return await _within(deadline, ask())
            except ClientError as error:
                delay_s = self._retry.delay_s(error, attempt)
                if delay_s is None:
                    raise
            attempt += 1
            await _within(deadline, asyncio.sleep(delay_s))

    async def _why_not_ready(self, health: Health) -> str:
        if health.model is None or not health.live:
            return "some of its models are not ready" if health.live else "it is not live"
        name, _, version = health.model.partition("@")
        try:
            listed = await self.models()
        except UnauthenticatedError:
            return "it is not there or not loaded; which of both, the server tells with a key only"
        cards = [card for card in listed if card.name == name and version in ("", card.version)]
        if not cards:
            raise request_error(FaultKind.NOT_FOUND, f"the server has no model {health.model!r}")
        return "; ".join(f"version {card.version or '?'} is {card.reason or card.state}" for card in cards)


def open_transport(address: Address, api_key: str | None) -> Transport:
    """The transport an address asks for. gRPC is imported only here, when it is used."""
    if address.is_grpc:
        from client.over_grpc import GrpcTransport

        return GrpcTransport(address, api_key)
    from client.over_http import HttpTransport

    return HttpTransport(address, api_key)


def _prompt_request(prompt: str, raw: bool, options: OptionFields) -> GenerateRequest:
    checked = options_of(options)
    if raw:
        return text_request(prompt, checked)
    return chat_request([{"role": "user", "content": prompt}], checked)


async def _within(deadline: float | None, work: Awaitable[T], request_id: str = "") -> T:
    loop = asyncio.get_running_loop()
    when = None if deadline is None else loop.time() + (deadline - time.monotonic())
    try:
        async with asyncio.timeout_at(when):
            return await work
    except TimeoutError:
        raise DeadlineError("no complete answer within the time allowed", request_id=request_id) from None
