from __future__ import annotations

import socket
import struct

import pytest

from daemon.backends import channel as channel_module
from daemon.backends.base import TokenChoice, TokenEvent
from daemon.backends.channel import (
    Cancel,
    Channel,
    ChannelError,
    FromWorker,
    Tokens,
    ToWorker,
)


async def pair() -> tuple[Channel[FromWorker], Channel[ToWorker]]:
    ours, theirs = socket.socketpair()
    return await Channel.open(ours, FromWorker), await Channel.open(theirs, ToWorker)


async def close(*ends: Channel[FromWorker] | Channel[ToWorker]) -> None:
    for end in ends:
        end.close()
        await end.wait_closed()


async def test_frames_arrive_as_they_were_sent() -> None:
    daemon, worker = await pair()
    frame = Tokens([(1, TokenEvent([5], [TokenChoice(5, -0.5, ((5, -0.5),))], None, "stop", 3, 0.25))])
    worker.send(frame)
    daemon.send(Cancel(7))
    assert await daemon.receive() == frame
    assert await worker.receive() == Cancel(7)
    await close(worker)
    assert await daemon.receive() is None
    daemon.send(Cancel(8))
    await close(daemon)


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 9) + b"\x92\xa6Cancel\x05",
    ],
    ids=["not msgpack", "too long", "not for this direction"],
)
async def test_garbage_is_an_error(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    daemon: Channel[FromWorker] = await Channel.open(ours, FromWorker)
    theirs.send(garbage)
    with pytest.raises(ChannelError):
        await daemon.receive()
    theirs.close()
    await close(daemon)


async def test_oversized_frame_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, worker = await pair()
    monkeypatch.setattr(channel_module, "MAX_FRAME_BYTES", 10)
    with pytest.raises(ChannelError, match="limit"):
        worker.send(Tokens([(1, TokenEvent(list(range(100))))]))
    await close(daemon, worker)
