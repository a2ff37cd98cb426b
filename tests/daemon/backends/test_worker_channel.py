from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.backends import channel as channel_module
from daemon.backends.base import TokenChoice, TokenEvent
from daemon.backends.channel import (
    Cancel,
    Channel,
    ChannelError,
    Frame,
    FromWorker,
    Tokens,
    ToWorker,
)


async def pair() -> tuple[Channel[FromWorker], Channel[ToWorker]]:
    ours, theirs = socket.socketpair()
    return await Channel.open(ours, FromWorker), await Channel.open(theirs, ToWorker)


async def close(*ends: Channel[Any]) -> None:
    for end in ends:
        end.close()
        await end.wait_closed()


async def frames_of(channel: Channel[Any], count: int) -> list[Frame]:
    """The next ``count``, after which nothing more is received."""
    got: list[Frame] = []

    def take(frame: Frame) -> None:
        got.append(frame)
        if len(got) == count:
            channel.stop_receiving()

    await channel.receive(take)
    return got


async def test_frames_arrive_as_they_were_sent() -> None:
    daemon, worker = await pair()
    frame = Tokens([(1, TokenEvent([5], [TokenChoice(5, -0.5, ((5, -0.5),))], None, "stop", 3, 0.25))])
    worker.send(frame)
    daemon.send(Cancel(7))
    daemon.send(Cancel(8))
    assert await frames_of(daemon, 1) == [frame]
    assert await frames_of(worker, 2) == [Cancel(7), Cancel(8)]
    await close(daemon, worker)


async def test_the_end_of_the_other_side_ends_receiving() -> None:
    daemon, worker = await pair()
    worker.send(Tokens([]))
    await close(worker)
    got: list[Frame] = []
    await daemon.receive(got.append)
    assert got == [Tokens([])]
    daemon.send(Cancel(8))
    with pytest.raises(ConnectionError):
        await daemon.drain()
    await close(daemon)


@given(
    calls=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    cuts=st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_arrive_whole_however_the_bytes_are_cut(calls: list[int], cuts: list[int]) -> None:
    assert asyncio.run(_cut(calls, cuts)) == [Cancel(call) for call in calls]


async def _cut(calls: Sequence[int], cuts: Sequence[int]) -> list[Frame]:
    daemon, worker = await pair()
    bodies = [msgspec.msgpack.encode(Cancel(call)) for call in calls]
    sent = b"".join(struct.pack(">I", len(body)) + body for body in bodies)
    got: list[Frame] = []
    receiving = asyncio.create_task(worker.receive(got.append))
    lengths = itertools.cycle(cuts)
    while sent:
        length = next(lengths)
        worker.data_received(sent[:length])
        sent = sent[length:]
        await asyncio.sleep(0)
    worker.stop_receiving()
    await receiving
    await close(daemon, worker)
    return got


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
        await frames_of(daemon, 1)
    theirs.close()
    await close(daemon)


async def test_a_defect_of_who_takes_frames_is_raised_and_ends_receiving() -> None:
    daemon, worker = await pair()
    taken: list[Frame] = []

    def take(frame: Frame) -> None:
        taken.append(frame)
        raise ValueError("a defect")

    daemon.send(Cancel(1))
    daemon.send(Cancel(2))
    with pytest.raises(ValueError, match="a defect"):
        await worker.receive(take)
    assert taken == [Cancel(1)]
    await close(daemon, worker)


async def test_oversized_frame_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, worker = await pair()
    monkeypatch.setattr(channel_module, "MAX_FRAME_BYTES", 10)
    with pytest.raises(ChannelError, match="limit"):
        worker.send(Tokens([(1, TokenEvent(list(range(100))))]))
    await close(daemon, worker)


async def test_who_reads_slowly_is_waited_for() -> None:
    daemon, worker = await pair()
    while worker.is_writable:
        worker.send(Tokens([(1, TokenEvent(list(range(1000))))]))
    draining = asyncio.create_task(worker.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    receiving = asyncio.create_task(daemon.receive(lambda _: None))
    await draining
    await close(worker)
    await receiving
    await close(daemon)
