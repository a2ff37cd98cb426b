"""What the daemon and a worker process say to each other, and how it travels: length-prefixed msgpack frames.

Knows nothing of processes or engines. ``worker`` is one end, ``worker_main`` the other.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from contract.faults import Fault
from daemon.backends.base import (
    AdapterInfo,
    BackendStats,
    InferRequest,
    ModelInfo,
    ModelSpec,
    Tensor,
    TokenEvent,
    TokenRequest,
)

MAX_FRAME_BYTES = 1 << 30
_LENGTH = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; the class name is its tag."""


class Load(Frame, frozen=True):
    """The first frame a worker gets."""

    spec: ModelSpec


class Generate(Frame, frozen=True):
    call: int
    """The daemon's number for this request; request ids come from outside and may repeat."""
    request: TokenRequest


class Infer(Frame, frozen=True):
    call: int
    request: InferRequest


class Credit(Frame, frozen=True):
    """The reader of a tensor call took one response; another may be sent."""

    call: int


class Cancel(Frame, frozen=True):
    call: int


class AskStats(Frame, frozen=True):
    call: int


class Unload(Frame, frozen=True):
    """Stop and exit. The end of the process is the answer."""


class LoadAdapter(Frame, frozen=True):
    call: int
    name: str
    directory: str


class UnloadAdapter(Frame, frozen=True):
    call: int
    name: str


ToWorker = Load | Generate | Infer | Credit | Cancel | AskStats | Unload | LoadAdapter | UnloadAdapter


class LoadProgress(Frame, frozen=True):
    fraction: float
    text: str


class Loaded(Frame, frozen=True):
    info: ModelInfo | None = None
    """Of a token backend."""
    config: dict[str, Any] | None = None
    """Of a tensor backend."""


class LoadFailed(Frame, frozen=True):
    fault: dict[str, Any]


class Tokens(Frame, frozen=True):
    """What many requests got since the last frame."""

    items: list[tuple[int, TokenEvent]]


class Tensors(Frame, frozen=True):
    call: int
    outputs: list[Tensor]


class Ended(Frame, frozen=True):
    """Nothing more comes for this call."""

    call: int
    fault: dict[str, Any] | None = None


class Stats(Frame, frozen=True):
    call: int
    stats: BackendStats


class AdapterDone(Frame, frozen=True):
    """The answer to ``LoadAdapter`` and ``UnloadAdapter``."""

    call: int
    info: AdapterInfo | None = None
    fault: dict[str, Any] | None = None


FromWorker = LoadProgress | Loaded | LoadFailed | Tokens | Tensors | Ended | Stats | AdapterDone

InboundT = TypeVar("InboundT", bound=Frame)


class ChannelError(Exception):
    """A frame that is too large or cannot be read."""


class Channel(asyncio.Protocol, Generic[InboundT]):
    """One end of the connection. Reading and writing are independent."""

    _transport: asyncio.Transport

    def __init__(self, inbound: Any) -> None:
        """For ``open``."""
        self._decoder: msgspec.msgpack.Decoder[InboundT] = msgspec.msgpack.Decoder(inbound)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=str)
        self._received = bytearray()
        self._take: Callable[[InboundT], None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        loop = asyncio.get_running_loop()
        self._received_all: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()

    @classmethod
    async def open(cls, sock: socket.socket, inbound: Any) -> Channel[InboundT]:
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(inbound), sock=sock)
        return channel

    async def receive(self, take: Callable[[InboundT], None]) -> None:
        """Hand every frame over as soon as it is here, until the other end is gone or ``stop_receiving``.

        Raises ``ChannelError``, and what ``take`` raises.
        """
        self._take = take
        self._hand_over(take)
        await self._received_all

    def stop_receiving(self) -> None:
        """``take`` gets nothing more."""
        self._end(None)

    def send(self, frame: Frame) -> None:
        """Queue a frame for writing. Raises ``ChannelError``; a connection already lost is not an error."""
        body = self._encoder.encode(frame)
        if len(body) > MAX_FRAME_BYTES:
            raise ChannelError(f"a frame of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
        if not self._transport.is_closing():
            self._transport.writelines((_LENGTH.pack(len(body)), body))

    @property
    def is_writable(self) -> bool:
        """Whether the other end has taken most of what was sent."""
        return self._writable.is_set()

    async def drain(self) -> None:
        """Wait until ``is_writable``. Raises ``ConnectionError``."""
        await self._writable.wait()
        if self._closed.done():
            raise ConnectionResetError("the other end is gone")

    def close(self) -> None:
        self._transport.close()

    async def wait_closed(self) -> None:
        await asyncio.shield(self._closed)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._take is not None:
            self._hand_over(self._take)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(None)
        self._writable.set()
        self._closed.set_result(None)

    def _hand_over(self, take: Callable[[InboundT], None]) -> None:
        try:
            while not self._received_all.done() and (frame := self._next()) is not None:
                take(frame)
        except Exception as error:
            self._end(error)

    def _next(self) -> InboundT | None:
        """The first of the frames received, ``None`` while it is incomplete. Raises ``ChannelError``."""
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > MAX_FRAME_BYTES:
            raise ChannelError(f"a frame claims {length} bytes; the limit is {MAX_FRAME_BYTES}")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        try:
            with memoryview(self._received)[_LENGTH.size : end] as body:
                frame = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ChannelError(f"a frame cannot be read: {error}") from error
        del self._received[:end]
        return frame

    def _end(self, error: Exception | None) -> None:
        """Nothing more is received. The first reason counts."""
        if self._received_all.done():
            return
        if error is None:
            self._received_all.set_result(None)
        else:
            self._received_all.set_exception(error)


class TensorInbox:
    """Responses of one tensor call; the worker sends only as many as it has credit for."""

    def __init__(self) -> None:
        self._responses: deque[list[Tensor]] = deque()
        self._over = False
        self._fault: Fault | None = None
        self._arrived = asyncio.Event()

    def put(self, outputs: list[Tensor]) -> None:
        self._responses.append(outputs)
        self._arrived.set()

    def fail(self, fault: Fault | None) -> None:
        """End the stream after what has arrived; without a fault it is complete."""
        if not self._over:
            self._over, self._fault = True, fault
        self._arrived.set()

    async def get(self) -> list[Tensor] | None:
        """The next response, ``None`` after the last. Raises ``Fault``."""
        await self._arrived.wait()
        if self._responses:
            outputs = self._responses.popleft()
            if not self._responses and not self._over:
                self._arrived.clear()
            return outputs
        if self._fault is not None:
            raise self._fault
        return None
