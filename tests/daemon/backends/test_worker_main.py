"""When tokens leave a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from daemon.backends.base import TokenEvent
from daemon.backends.channel import Channel, Frame, Tokens, ToWorker
from daemon.backends.worker_main import Outbox

FIRST, SECOND = TokenEvent([5]), TokenEvent([6])


class Recorded(Channel[ToWorker]):
    """Sends nothing and keeps it."""

    def __init__(self) -> None:
        super().__init__(ToWorker)
        self.sent: list[Frame] = []

    def send(self, frame: Frame) -> None:
        self.sent.append(frame)


@contextmanager
def running(outbox: Outbox) -> Iterator[None]:
    task = asyncio.create_task(outbox.run())
    try:
        yield
    finally:
        task.cancel()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("calls", [(1,), (1, 2)])
async def test_a_step_for_every_call_leaves_at_once_in_one_frame(calls: Iterable[int]) -> None:
    channel = Recorded()
    outbox = Outbox(channel, set(calls))
    with running(outbox):
        await turns()
        for call in calls:
            assert not channel.sent
            outbox.put_tokens(call, FIRST)
        assert channel.sent == [Tokens([(call, FIRST) for call in calls])]
        await turns()
        assert len(channel.sent) == 1


async def test_a_call_that_got_nothing_is_not_waited_for() -> None:
    channel = Recorded()
    outbox = Outbox(channel, {1, 2, 3})
    with running(outbox):
        await turns()
        outbox.put_tokens(1, FIRST)
        outbox.put_tokens(2, FIRST)
        assert not channel.sent
        await turns()
    assert channel.sent == [Tokens([(1, FIRST), (2, FIRST)])]


async def test_events_merge_while_the_daemon_reads_slowly() -> None:
    channel = Recorded()
    outbox = Outbox(channel, {1})
    with running(outbox):
        await turns()
        channel.pause_writing()
        outbox.put_tokens(1, FIRST)
        await turns()
        outbox.put_tokens(1, SECOND)
        await turns()
        assert not channel.sent
        channel.resume_writing()
        await turns()
    assert channel.sent == [Tokens([(1, TokenEvent([5, 6]))])]
