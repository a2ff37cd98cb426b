"""The blocking client's thread: what it runs ends with its caller."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from client.blocking import _LoopThread


class Work:
    """Work that says when it began, and how it ended."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
def thread() -> Iterator[_LoopThread]:
    thread = _LoopThread()
    yield thread
    thread.close()


async def nothing() -> None:
    pass


def test_gives_results_and_errors(thread: _LoopThread) -> None:
    async def divide(a: int, b: int) -> float:
        return a / b

    assert thread.run(lambda: divide(3, 2)) == 1.5
    with pytest.raises(ZeroDivisionError):
        thread.run(lambda: divide(3, 0))


def test_an_error_before_the_first_await_reaches_the_caller(thread: _LoopThread) -> None:
    with pytest.raises(KeyError, match="absent"):
        thread.run(lambda: dict[str, asyncio.Future[None]]()["absent"])


def test_refuses_work_after_its_end(thread: _LoopThread) -> None:
    thread.close()
    with pytest.raises(RuntimeError, match="closed"):
        thread.run(nothing)


@pytest.mark.parametrize("handed_over", [False, True], ids=["before", "after"])
def test_an_interrupt_while_work_is_handed_over_leaves_nothing_running(
    thread: _LoopThread, monkeypatch: pytest.MonkeyPatch, handed_over: bool
) -> None:
    hand_over = thread._loop.call_soon_threadsafe
    work = Work()

    def interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        if handed_over:
            hand_over(*arguments)
            hand_over(lambda: None)
        raise KeyboardInterrupt

    monkeypatch.setattr(thread._loop, "call_soon_threadsafe", interrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyboardInterrupt):
            thread.run(work)
        thread.run(nothing)
    if work.begun.is_set():
        assert work.cancelled.wait(5)


def test_an_interrupt_while_waiting_cancels_the_work(
    thread: _LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()

    def wait_and_interrupt(*arguments: object) -> None:
        assert work.begun.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr("client.blocking.Future.result", wait_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.run(work)
    assert work.cancelled.wait(5)


def test_closing_ends_a_call_of_another_thread(thread: _LoopThread) -> None:
    work = Work()
    ended = threading.Event()

    def call() -> None:
        with pytest.raises(CancelledError):
            thread.run(work)
        ended.set()

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    assert work.begun.wait(5)
    thread.close()
    assert ended.wait(5)
    caller.join()


@pytest.mark.parametrize("moment", ["while work is cancelled", "in the last turn", "after the end"])
def test_work_handed_over_while_closing_ends(
    thread: _LoopThread, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    work, loop = Work(), thread._loop
    hand_over, stop = loop.call_soon_threadsafe, loop.stop
    asked, released, handed, ended = (threading.Event() for _ in range(4))

    def call() -> None:
        with pytest.raises((CancelledError, RuntimeError)):
            thread.run(work)
        ended.set()

    def delayed(*arguments: Any) -> None:
        if threading.current_thread() is not caller:
            hand_over(*arguments)
            return
        asked.set()
        assert released.wait(5)
        try:
            hand_over(*arguments)
        finally:
            handed.set()

    def release() -> None:
        released.set()
        assert handed.wait(5)

    async def closer() -> None:
        await asyncio.to_thread(release)

    def last_turn() -> None:
        stop()
        release()

    caller = threading.Thread(target=call, daemon=True)
    monkeypatch.setattr(loop, "call_soon_threadsafe", delayed)
    caller.start()
    assert asked.wait(5)
    if moment == "while work is cancelled":
        thread.before_close(closer)
    elif moment == "in the last turn":
        monkeypatch.setattr(loop, "stop", last_turn)
    thread.close()
    if moment == "after the end":
        release()
    assert ended.wait(5)
    assert not work.begun.is_set()
    caller.join()
