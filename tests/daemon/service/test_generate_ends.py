"""How a request ends over fake engines: faults, cancellation, overload, time-outs, stops; always once."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from contract.faults import Fault, FaultKind
from contract.generation import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Started,
)
from daemon.backends.base import Cancel, TokenEvent, TokenRequest, TokenSink
from daemon.service.generate import ServiceLimits
from tests.daemon.service.asking import TERMINAL, collect, fault_of
from tests.fakes import (
    EchoBackend,
    FakeBackends,
    ScriptedBackend,
    SlowBackend,
    fake_service,
    request_of,
    until,
)


@pytest.mark.parametrize("name", ["failing", "crashing"])
@pytest.mark.parametrize("n", [1, 3])
async def test_engine_faults_end_the_request(tmp_path: Path, name: str, n: int) -> None:
    service = await fake_service(tmp_path, (name,))
    last = (await collect(service, request_of("hello", n=n)))[-1]
    assert isinstance(last, Failed)
    assert last.fault["kind"] in {"out_of_memory", "model_crashed"}
    await service.stop(1)


async def test_an_engine_that_just_ends_is_a_fault(tmp_path: Path) -> None:
    backends = FakeBackends({"echo": lambda: ScriptedBackend([TokenEvent([50])])})
    service = await fake_service(tmp_path, backends=backends)
    last = (await collect(service, request_of("hello")))[-1]
    assert isinstance(last, Failed)
    assert last.fault["kind"] == "internal"
    await service.stop(1)


async def test_closing_at_any_event_cancels_in_the_engine(tmp_path: Path) -> None:
    for events in range(6):
        backends = FakeBackends()
        service = await fake_service(tmp_path / str(events), ("slow",), backends=backends)
        slow = backends.last("slow")
        assert isinstance(slow, SlowBackend)
        slow.allow(events)
        stream = service.generate(request_of("one two three four"))
        for _ in range(events):
            await anext(stream)
        await stream.aclose()
        await slow.idle()
        assert len(slow.closed) == len(slow.requests)
        page, _ = await service.metrics_page()
        cancelled = b'mindport_requests_total{dialect="mindie",fault="",model="slow",outcome="cancelled",'
        assert (cancelled in page) == (events > 0)
        await service.stop(1)


async def test_cancelling_the_reader_cancels_in_the_engine(tmp_path: Path) -> None:
    backends = FakeBackends()
    service = await fake_service(tmp_path, ("slow",), backends=backends)
    task = asyncio.create_task(collect(service, request_of("hello there")))
    slow = backends.last("slow")
    await until(lambda: slow.running > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: slow.running == 0)
    await service.stop(1)


async def test_cancel_by_id(tmp_path: Path) -> None:
    backends = FakeBackends()
    limits = ServiceLimits(max_running=1)
    service = await fake_service(tmp_path, ("slow",), backends=backends, limits=limits)
    tasks = [
        asyncio.create_task(collect(service, request_of("hi", request_id=one))) for one in ("a", "b", "a")
    ]
    await until(lambda: backends.last("slow").running > 0)
    assert await service.cancel("a")
    assert not await service.cancel("nobody")
    assert isinstance((await tasks[0])[-1], Cancelled)
    assert isinstance((await tasks[2])[-1], Cancelled)
    slow = backends.last("slow")
    assert isinstance(slow, SlowBackend)
    slow.allow(10)
    assert isinstance((await tasks[1])[-1], Finished)
    assert [one.request_id for one in slow.requests] == ["a", "b"]
    await service.stop(1)


async def test_cancel_before_the_first_step(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    stream = service.generate(request_of("hi", sampling={"prompt_logprobs": 0}))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert await service.cancel("r1")
    assert isinstance(await first, Started)
    assert isinstance(await anext(stream), Cancelled)
    await stream.aclose()
    await service.stop(1)


async def test_ids_in_flight_are_unique(tmp_path: Path) -> None:
    backends = FakeBackends()
    service = await fake_service(tmp_path, backends=backends)
    await asyncio.gather(*(collect(service, request_of("hi")) for _ in range(3)))
    ids = [one.request_id for one in backends.last("echo").requests]
    assert len(set(ids)) == 3
    await service.stop(1)


async def test_overload_and_priority(tmp_path: Path) -> None:
    backends = FakeBackends()
    limits = ServiceLimits(max_running=1, max_waiting=1)
    service = await fake_service(tmp_path, ("slow",), backends=backends, limits=limits)
    wanted = [("first", 0), ("late", 1), ("urgent", -1)]
    tasks = []
    for name, priority in wanted:
        tasks.append(
            asyncio.create_task(collect(service, request_of("x", request_id=name, priority=priority)))
        )
        await asyncio.sleep(0.01)
    fault = await fault_of(service, request_of("x", priority=1))
    assert fault.kind is FaultKind.OVERLOADED
    slow = backends.last("slow")
    assert isinstance(slow, SlowBackend)
    slow.allow(100)
    await asyncio.gather(*tasks)
    assert [one.request_id for one in slow.requests] == ["first", "urgent", "late"]
    await service.stop(1)


async def test_timeouts_count_the_queue(tmp_path: Path) -> None:
    limits = ServiceLimits(max_running=1)
    service = await fake_service(tmp_path, ("slow",), limits=limits)
    both = await asyncio.gather(*(collect(service, request_of("x", timeout_s=0.02)) for _ in range(2)))
    for events in both:
        assert isinstance(events[-1], Failed)
        assert events[-1].fault["kind"] == "timeout"
    await service.stop(1)


async def test_stopping_refuses_and_drains(tmp_path: Path) -> None:
    backends = FakeBackends()
    service = await fake_service(tmp_path, ("slow",), backends=backends)
    assert service.ready()
    task = asyncio.create_task(collect(service, request_of("x")))
    slow = backends.last("slow")
    await until(lambda: slow.running > 0)
    stop = asyncio.create_task(service.stop(5))
    await asyncio.sleep(0)
    assert not service.ready()
    assert service.live()
    assert (await fault_of(service, request_of("y"))).kind is FaultKind.NOT_READY
    assert isinstance(slow, SlowBackend)
    slow.allow(5)
    await stop
    assert isinstance((await task)[-1], Finished)
    assert slow.unloaded


async def test_stop_cuts_off_what_does_not_end_and_says_so(tmp_path: Path) -> None:
    backends = FakeBackends()
    service = await fake_service(tmp_path, ("slow",), backends=backends)
    task = asyncio.create_task(collect(service, request_of("x")))
    await until(lambda: backends.last("slow").running > 0)
    await service.stop(0.01)
    last = (await task)[-1]
    assert isinstance(last, Failed)
    assert (last.fault["kind"], last.fault["message"]) == (
        "not_ready",
        "the daemon stopped before the answer was complete",
    )


class FlakyBackend(EchoBackend):
    """Any step may fail, take a while, or bring down the worker's answer."""

    chance = random.Random(11)

    async def step(self) -> None:
        luck = self.chance.random()
        if luck < 0.03:
            raise Fault(FaultKind.OUT_OF_MEMORY, "unlucky")
        if luck < 0.05:
            raise ValueError("a defect")
        await asyncio.sleep(0.001 if luck < 0.3 else 0)


async def test_every_request_ends_once_whatever_happens(tmp_path: Path) -> None:
    chance = random.Random(5)
    backends = FakeBackends({"echo": FlakyBackend})
    limits = ServiceLimits(max_running=4, max_waiting=8)
    service = await fake_service(tmp_path, backends=backends, limits=limits)

    async def one(number: int) -> str:
        await asyncio.sleep(chance.random() * 0.05)
        request = request_of("one two three four", request_id=str(number % 7), n=chance.choice([1, 1, 3]))
        patience = chance.randrange(40)
        stream = service.generate(request)
        seen: list[Event] = []
        try:
            async for event in stream:
                assert not any(isinstance(old, TERMINAL) for old in seen)
                seen.append(event)
                if len(seen) > patience:
                    await stream.aclose()
                    return "left"
        except Fault as fault:
            assert not seen
            return fault.kind.value
        if chance.random() < 0.1:
            await service.cancel(str(number % 7))
        assert isinstance(seen[-1], TERMINAL)
        return type(seen[-1]).__name__

    ways = Counter(await asyncio.gather(*(one(number) for number in range(200))))
    assert {"Finished", "Failed", "left", "overloaded"} <= set(ways)
    assert backends.last("echo").running == 0
    page, _ = await service.metrics_page()
    ended = re.findall(rb"^mindport_requests_total{.*} (\S+)$", page, re.MULTILINE)
    assert sum(map(float, ended)) == 200
    assert b'num_requests_waiting{model_name="echo",version="1"} 0.0' in page
    await service.stop(1)


class ReluctantBackend(EchoBackend):
    """Goes on pushing after it was cancelled, and refuses requests for several answers halfway."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks: list[TokenSink] = []
        self.cancelled = 0

    def start(self, request: TokenRequest, sink: TokenSink) -> Cancel:
        if self.sinks:
            raise Fault(FaultKind.OUT_OF_MEMORY, "one is enough")
        self.sinks.append(sink)
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1


async def test_what_is_pushed_after_the_end_is_dropped(tmp_path: Path) -> None:
    backends = FakeBackends({"echo": ReluctantBackend})
    service = await fake_service(tmp_path, backends=backends)
    backend = backends.last("echo")
    assert isinstance(backend, ReluctantBackend)
    stream = service.generate(request_of("hello"))
    assert isinstance(await anext(stream), Started)
    backend.sinks[0].put(TokenEvent([50]))
    assert await service.cancel("r1")
    backend.sinks[0].put(TokenEvent([51], finish="length"))
    backend.sinks[0].fail(Fault(FaultKind.INTERNAL, "too late"))
    rest = [event async for event in stream]
    assert isinstance(rest[-1], Cancelled)
    assert rest[-1].usage.completion_tokens == 1
    assert (len(rest), backend.cancelled) == (2, 1)
    await service.stop(1)


async def test_a_fault_of_one_answer_cancels_those_already_begun(tmp_path: Path) -> None:
    backends = FakeBackends({"echo": ReluctantBackend})
    service = await fake_service(tmp_path, backends=backends)
    backend = backends.last("echo")
    assert isinstance(backend, ReluctantBackend)
    _, failed = await collect(service, request_of("hello", n=3))
    assert isinstance(failed, Failed)
    assert failed.fault["message"] == "one is enough"
    assert backend.cancelled == 1
    await service.stop(1)


async def test_who_waits_and_has_to_give_way_is_told(tmp_path: Path) -> None:
    backends = FakeBackends()
    limits = ServiceLimits(max_running=1, max_waiting=1)
    service = await fake_service(tmp_path, ("slow",), backends=backends, limits=limits)
    asked = [("first", 0), ("late", 1), ("normal", 0)]
    tasks = []
    for name, priority in asked:
        request = request_of("x", request_id=name, priority=priority)
        tasks.append(asyncio.create_task(collect(service, request)))
        await asyncio.sleep(0.01)
    last = (await tasks[1])[-1]
    assert isinstance(last, Failed)
    assert last.fault["kind"] == "overloaded"
    slow = backends.last("slow")
    assert isinstance(slow, SlowBackend)
    slow.allow(100)
    for task in (tasks[0], tasks[2]):
        assert isinstance((await task)[-1], Finished)
    await service.stop(1)
