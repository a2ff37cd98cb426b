"""An engine on a runner that is arithmetic, stepped by the test."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from contract.faults import Fault
from daemon.backends.base import TokenEvent, TokenRequest
from daemon.backends.ms.engine import Engine, EngineSettings, Outcome
from daemon.backends.sinks import merge
from tests.fakes_engine import FakeRunner


class Harness:
    """An engine without its thread: tests make the steps."""

    def __init__(self, runner: FakeRunner | None = None, **options: Any) -> None:
        self.runner = runner or FakeRunner()
        self.outcomes: dict[int, list[Outcome]] = defaultdict(list)
        self.given_up: list[str] = []
        engine_settings = EngineSettings(**{"context_len": 1000, "max_sequences": 4, **options})
        self.engine = Engine(self.runner, engine_settings, self._emit, self.given_up.append)

    def _emit(self, outcomes: list[tuple[int, Outcome]]) -> None:
        for number, outcome in outcomes:
            self.outcomes[number].append(outcome)

    def step(self) -> bool:
        """``False`` when there was nothing to do."""
        self.engine.take_orders()
        stats = self.engine.stats
        if not stats.running + stats.waiting:
            return False
        self.engine.step()
        return True

    def run(self) -> None:
        for _ in range(5000):
            if not self.step():
                return
        raise AssertionError("the engine does not come to an end")

    def answer(self, number: int) -> TokenEvent:
        """All events of one request as one; fails the test when it ended with a fault."""
        events = self.outcomes[number]
        assert all(isinstance(event, TokenEvent) for event in events), events
        return merge([event for event in events if isinstance(event, TokenEvent)])

    def fault(self, number: int) -> Fault:
        last = self.outcomes[number][-1]
        assert isinstance(last, Fault)
        return last


def submit_all(harness: Harness, requests: list[TokenRequest]) -> None:
    for number, asked in enumerate(requests):
        harness.engine.submit(number, asked)
