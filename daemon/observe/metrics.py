"""The Prometheus page: Triton's, vLLM's and MindIE's names over one ledger, so that existing boards work."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from daemon.backends.base import BackendStats
from daemon.observe.families import counter_families, gauge_families, histogram_families, state_families
from daemon.observe.ledger import Key, Ledger
from daemon.repository.status import ModelStatus

_COUNTER_TYPE = re.compile(rb"^(# TYPE nv_inference_(?!pending)\w+) untyped$", re.MULTILINE)


class VersionSnapshot(NamedTuple):
    """What is true of a version at the moment of the page."""

    status: ModelStatus
    stats: BackendStats | None
    queued: int
    """Requests that wait outside the engine."""


class Metrics:
    """Renders pages. Has a registry of its own: nothing is global."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._page = _Page(ledger, clock)
        self._registry = CollectorRegistry()
        self._registry.register(self._page)
        ProcessCollector(registry=self._registry)

    def render(self, snapshots: Sequence[VersionSnapshot]) -> tuple[bytes, str]:
        """The page and its content type."""
        self._page.snapshots = list(snapshots)
        text = generate_latest(self._registry)
        # The library insists on "_total" for counters, and Triton's names have none.
        return _COUNTER_TYPE.sub(rb"\1 counter", text), CONTENT_TYPE_PLAIN_0_0_4


class _Page(Collector):
    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._previous: tuple[float, dict[Key, tuple[int, int]]] = (clock(), {})
        self.snapshots: list[VersionSnapshot] = []

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from counter_families(self._ledger)
        yield from histogram_families(self._ledger)
        engines = [
            (Key(one.status.name, one.status.version), one.stats, one.queued)
            for one in self.snapshots
            if one.stats is not None
        ]
        yield from gauge_families(self._ledger, engines, self._rates())
        yield from state_families([one.status for one in self.snapshots])

    def _rates(self) -> dict[Key, tuple[float, float]]:
        """Prompt and generated tokens a second since the previous page."""
        now = self._clock()
        then, before = self._previous
        counts = {
            key: (one.prompt_tokens, one.generation_tokens) for key, one in self._ledger.versions.items()
        }
        self._previous = (now, counts)
        elapsed = max(now - then, 1e-9)
        rates = {}
        for key, (prompt, generated) in counts.items():
            old_prompt, old_generated = before.get(key, (0, 0))
            rates[key] = ((prompt - old_prompt) / elapsed, (generated - old_generated) / elapsed)
        return rates
