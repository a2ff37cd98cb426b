"""One loaded version: its backend, what it can do, and how many requests hold on to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from contract.memory import resident_bytes
from daemon.backends.base import ModelInfo, ModelSpec
from daemon.repository.managed import ManagedBackend

T = TypeVar("T")


class Loaded(Generic[T]):
    """A backend that serves. A reload makes a second one; the first lives until its requests have ended."""

    def __init__(self, spec: ModelSpec, backend: ManagedBackend, info: ModelInfo, attachment: T) -> None:
        self.spec = spec
        self.backend = backend
        self.info = info
        self.attachment = attachment
        """What the service prepared for this version: tokenizer, template, defaults."""
        self.adapters = {adapter.name: adapter for adapter in info.adapters}
        """Served besides the model, by name."""
        self._resident_at_first = self._resident()
        self._leases = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def promised_bytes(self) -> int:
        """Memory that it may still take."""
        taken = max(0, self._resident() - self._resident_at_first)
        return max(0, self.info.unclaimed_bytes - taken)

    def _resident(self) -> int:
        return resident_bytes(self.backend.pid) if self.backend.pid is not None else 0

    @property
    def in_flight(self) -> int:
        return self._leases

    @contextmanager
    def lease(self) -> Iterator[Loaded[T]]:
        """Hold the version in memory while a request uses it."""
        self._leases += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._leases -= 1
            if not self._leases:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no request holds it; ``False`` if some still do when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
