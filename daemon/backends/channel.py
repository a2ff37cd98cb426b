"""What the daemon and a worker process say to each other, and how it travels: length-prefixed msgpack frames.

Knows nothing of processes or engines. ``worker`` is one end, ``worker_main`` the other.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Any, Generic, TypeVar

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


class Channel(Generic[InboundT]):
    """One end of the connection. Reading and writing are independent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inbound: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[InboundT] = msgspec.msgpack.Decoder(inbound)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=str)

    @classmethod
    async def open(cls, sock: socket.socket, inbound: Any) -> Channel[InboundT]:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, inbound)

    async def receive(self) -> InboundT | None:
        """The next frame, or ``None`` when the other end is gone. Raises ``ChannelError``."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise ChannelError(f"a frame claims {length} bytes; the limit is {MAX_FRAME_BYTES}")
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ChannelError(f"a frame cannot be read: {error}") from error

    def send(self, frame: Frame) -> None:
        """Queue a frame for writing. Raises ``ChannelError``; a connection already lost is not an error."""
        body = self._encoder.encode(frame)
        if len(body) > MAX_FRAME_BYTES:
            raise ChannelError(f"a frame of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
        if not self._writer.is_closing():
            self._writer.writelines((_LENGTH.pack(len(body)), body))

    async def drain(self) -> None:
        """Wait until the other end has taken most of what was sent. Raises ``ConnectionError``."""
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return


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
