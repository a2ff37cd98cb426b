"""The whole of ``facade.Service``: what both transports call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from contract.faults import Fault
from contract.generation import Event, GenerateRequest
from daemon.backends.base import BackendStats
from daemon.observe.health import Health
from daemon.observe.ledger import Ledger
from daemon.observe.metrics import Metrics, VersionSnapshot
from daemon.observe.requests import LogLine, RequestObserver
from daemon.repository.loaded import Loaded
from daemon.repository.registry import Registry
from daemon.repository.selection import split
from daemon.repository.status import ModelStatus
from daemon.service.generate import GenerateService, ServiceLimits
from daemon.service.prompt import of_text
from daemon.service.text_model import TextModel

_STATS_S = 1.0
"""A worker that is slower to answer is left out of one metrics page."""


class DaemonService:
    """Implements ``facade.Service`` over a registry."""

    def __init__(
        self,
        registry: Registry[TextModel],
        limits: ServiceLimits | None = None,
        log_line: LogLine | None = None,
    ) -> None:
        self._registry = registry
        self._ledger = Ledger()
        self._metrics = Metrics(self._ledger)
        self._health = Health(registry.startup_ready)
        observer = RequestObserver(self._ledger, log_line)
        self._generation = GenerateService(registry, observer, limits or ServiceLimits())

    async def start(self, names: Sequence[str] | None = None) -> list[Fault]:
        """Load the startup models (all, or those named) and answer the faults of those that failed."""
        faults = await self._registry.start(names)
        self._health.started()
        return faults

    def begin_stop(self) -> None:
        """Become unready and refuse new requests; running ones go on."""
        self._health.stopping()
        self._generation.refuse_new()

    async def stop(self, drain_s: float) -> None:
        """Let running requests finish, cancel what is left after that time, unload everything."""
        self.begin_stop()
        if not await self._generation.finished(drain_s):
            self._generation.cut_off()
        await self._registry.stop()

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        return self._generation.generate(request)

    def models(self) -> list[ModelStatus]:
        return self._registry.models()

    def find(self, model: str | None, version: str = "") -> ModelStatus:
        return self._registry.find(model, version)

    def live(self) -> bool:
        return self._health.live

    def ready(self) -> bool:
        return self._health.ready

    async def rescan(self) -> None:
        """Take note of models that appeared in or vanished from the repositories; nothing is loaded."""
        await self._registry.rescan()

    async def load(self, name: str, version: str = "") -> None:
        await self._registry.load(name, version)

    async def unload(self, name: str, version: str = "") -> None:
        await self._registry.unload(name, version)

    async def load_adapter(self, model: str | None, name: str, directory: str) -> None:
        await self._registry.load_adapter(model, name, directory)

    async def unload_adapter(self, name: str) -> None:
        await self._registry.unload_adapter(name)

    async def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Of one version, of all loaded ones of a model, or of everything loaded."""
        if name:
            name, version = split(name, version)
            self._registry.find(name, version)
        return [
            self._ledger.statistics(loaded.spec.name, loaded.spec.version)
            for loaded in self._registry.loaded()
            if name in {"", loaded.spec.name} and version in {"", loaded.spec.version}
        ]

    async def tokenize(self, model: str | None, text: str) -> list[int]:
        loaded = self._registry.get(model)
        return (await of_text(text, loaded.attachment, loaded.spec.name)).token_ids

    async def cancel(self, request_id: str) -> bool:
        return self._generation.cancel(request_id)

    async def engine_stats(self) -> dict[tuple[str, str], BackendStats | None]:
        """What each loaded version's engine is doing, by name and version; ``None``: it did not answer."""
        loaded = self._registry.loaded()
        stats = await asyncio.gather(*map(_stats, loaded))
        return {(one.spec.name, one.spec.version): stat for one, stat in zip(loaded, stats, strict=True)}

    async def metrics_page(self) -> tuple[bytes, str]:
        """The Prometheus page and its content type."""
        loaded = {(one.spec.name, one.spec.version): one for one in self._registry.loaded()}
        stats = await self.engine_stats()
        snapshots = [
            VersionSnapshot(
                status=status,
                stats=stats.get((status.name, status.version)),
                queued=self._queued(loaded.get((status.name, status.version))),
            )
            for status in self._registry.models()
        ]
        return self._metrics.render(snapshots)

    def _queued(self, loaded: Loaded[TextModel] | None) -> int:
        return self._generation.load_of(loaded)[1] if loaded else 0


async def _stats(loaded: Loaded[TextModel]) -> BackendStats | None:
    try:
        return await asyncio.wait_for(loaded.backend.stats(), _STATS_S)
    except (Fault, TimeoutError):
        return None
