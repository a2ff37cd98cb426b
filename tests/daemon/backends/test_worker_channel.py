from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends import channel as channel_module
from daemon.backends.base import TokenChoice, TokenEvent
from daemon.backends.channel import (
    Cancel,
    Channel,
    ChannelError,
    FromWorker,
    TokenInbox,
    Tokens,
    ToWorker,
    merge,
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


def test_merge_keeps_order_and_ends() -> None:
    first = TokenEvent([1], [TokenChoice(1, -1.0)], [TokenChoice(9, -2.0)], None, 16, 0.5)
    last = TokenEvent([2, 3], [TokenChoice(2, -1.0), TokenChoice(3, -1.0)], None, "length")
    merged = merge([first, last])
    assert merged.token_ids == [1, 2, 3]
    assert [choice.token_id for choice in merged.choices or ()] == [1, 2, 3]
    assert merged.prompt_choices == first.prompt_choices
    assert (merged.finish, merged.cached_tokens, merged.queue_s) == ("length", 16, 0.5)
    assert merge([TokenEvent([1]), TokenEvent([2])]).choices is None


async def test_inbox_merges_what_nobody_reads_and_then_fails() -> None:
    inbox = TokenInbox()
    for token in range(3):
        inbox.put(TokenEvent([token]))
    assert (await inbox.get()).token_ids == [0, 1, 2]
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(TokenEvent([3]))
    assert (await waiting).token_ids == [3]
    inbox.put(TokenEvent([4]))
    inbox.fail(Fault(FaultKind.INTERNAL, "first"))
    inbox.fail(Fault(FaultKind.INTERNAL, "second"))
    assert (await inbox.get()).token_ids == [4]
    with pytest.raises(Fault, match="first"):
        await inbox.get()
