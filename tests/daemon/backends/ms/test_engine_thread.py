"""The engine in a thread of its own, as the backend runs it."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.base import TokenEvent
from daemon.backends.ms.engine import Outcome
from tests.daemon.backends.ms.engine_harness import Harness
from tests.fakes_engine import FakeRunner, request, toy_answer


class Threaded(Harness):
    """With its thread; events arrive in a queue."""

    def __init__(self, runner: FakeRunner | None = None) -> None:
        super().__init__(runner)
        self.arrived: queue.Queue[tuple[int, Outcome]] = queue.Queue()
        self.engine.start()

    def _emit(self, outcomes: list[tuple[int, Outcome]]) -> None:
        for outcome in outcomes:
            self.arrived.put(outcome)

    def next(self) -> tuple[int, Outcome]:
        return self.arrived.get(timeout=5)


@pytest.fixture
def threaded() -> Iterator[Threaded]:
    harness = Threaded()
    yield harness
    harness.engine.stop()
    harness.engine.join(5)


def test_thread_serves_requests_from_others(threaded: Threaded) -> None:
    requests = [request([number, 1, 2], 8) for number in range(12)]
    threads = [
        threading.Thread(target=threaded.engine.submit, args=(number, asked))
        for number, asked in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    tokens: dict[int, list[int]] = defaultdict(list)
    for _ in range(12 * 8):
        number, event = threaded.next()
        assert isinstance(event, TokenEvent)
        tokens[number] += event.token_ids
    assert tokens == {number: toy_answer(asked) for number, asked in enumerate(requests)}
    for thread in threads:
        thread.join()


def test_idle_engine_does_not_spin(threaded: Threaded) -> None:
    threaded.engine.submit(1, request([1], 1))
    threaded.next()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_stopping_fails_what_is_in_flight(threaded: Threaded) -> None:
    threaded.engine.submit(1, request([1], 100_000))
    threaded.next()
    threaded.engine.stop()
    threaded.engine.join(5)
    last = None
    while not threaded.arrived.empty():
        _, last = threaded.next()
    assert isinstance(last, Fault)
    assert last.kind is FaultKind.NOT_READY
