"""One version of one model: its state, its worker, and the supervision that restarts the worker.

``load`` and ``unload`` run under the model's lock, which the registry holds; the supervisor takes it itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic

import msgspec

from contract.faults import Fault, FaultKind
from contract.serving import Serving
from daemon.backends.base import AdapterHost, AdapterInfo, ModelInfo, ModelSpec
from daemon.repository import selection
from daemon.repository.disk import VersionOnDisk
from daemon.repository.loaded import Loaded, T
from daemon.repository.managed import BackendFactory, ManagedBackend
from daemon.repository.restart import RestartPolicy
from daemon.repository.status import ModelStatus, State

Prepare = Callable[[VersionOnDisk], Awaitable[T]]
"""Checks a version's folder and reads from it what the service needs. Raises ``Fault``."""


@dataclass(frozen=True, kw_only=True)
class SlotParts(Generic[T]):
    """What all slots share."""

    make_backend: BackendFactory
    prepare: Prepare[T]
    spec_of: Callable[[VersionOnDisk], ModelSpec]
    changed: Callable[[ModelStatus], None]
    restart: RestartPolicy
    drain_s: float


class VersionSlot(Generic[T]):
    """The state machine of one version."""

    def __init__(self, on_disk: VersionOnDisk, parts: SlotParts[T], lock: asyncio.Lock) -> None:
        self.on_disk = on_disk
        self.pinned = False
        """Asked for by its number: a newer version does not replace it."""
        self.vanished = False
        """Its folder is gone; what is loaded serves on."""
        self.loaded: Loaded[T] | None = None
        self.state = State.BROKEN if on_disk.fault else State.LISTED
        self._reason = str(on_disk.fault) if on_disk.fault else ""
        self._progress = (0.0, "")
        self._ready_since: float | None = None
        self._restarts = 0
        self._adapters: dict[str, str] = {}
        """Loaded while serving: a restarted worker gets them again."""
        self._parts = parts
        self._lock = lock
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def version(self) -> str:
        return self.on_disk.version

    @property
    def adapters(self) -> set[str]:
        """Names of the adapters it serves, or will serve again after a restart."""
        if self.loaded is not None:
            return set(self.loaded.adapters)
        is_coming = self.state in {State.LOADING, State.RESTARTING}
        packaged = self.on_disk.serving.adapters if self.on_disk.serving else {}
        return {*packaged, *self._adapters} if is_coming else set()

    def status(self) -> ModelStatus:
        serving, loaded = self.on_disk.serving, self.loaded
        info = loaded.info if loaded else None
        details: dict[str, Any] = dict(info.details) if info else {}
        if info:
            details |= {"dtype": info.dtype, "vocab_size": info.vocab_size, "kv_tokens": info.kv_tokens}
            details["max_sequences"] = info.max_sequences
        return ModelStatus(
            name=self.on_disk.name,
            version=self.version,
            state=self.state,
            backend=self.on_disk.backend,
            reason=self._reason,
            progress=self._progress[0],
            progress_text=self._progress[1],
            directory=str(self.on_disk.directory),
            pid=loaded.backend.pid if loaded else None,
            ready_since=self._ready_since,
            restarts=self._restarts,
            context_len=info.context_len if info else serving.limits.max_seq_len if serving else 0,
            max_input_tokens=_max_input_tokens(serving, info),
            has_chat_template=bool(serving and serving.prompt.chat_template),
            memory_bytes=info.memory_bytes if info else 0,
            adapters=sorted(self.adapters),
            details=details,
        )

    def rescan(self, on_disk: VersionOnDisk) -> None:
        """Take note of what is on disk now; what is loaded stays as it is until it is loaded again."""
        was_unreadable, self.on_disk = self.on_disk.fault is not None, on_disk
        self.vanished = False
        if self.state in {State.LISTED, State.UNLOADED, State.BROKEN} and on_disk.fault:
            self._change(State.BROKEN, str(on_disk.fault))
        elif self.state is State.BROKEN and was_unreadable:
            # What could not be loaded keeps its reason until someone loads it again.
            self._change(State.LISTED)

    async def load(self) -> None:
        """Load, or reload while the old worker serves; the old one stays if the new cannot be made."""
        await self.halt_supervision()
        old = self.loaded
        self._change(State.READY if old else State.LOADING)
        try:
            new = await self._build()
        except Fault as fault:
            if old is None:
                self._change(State.BROKEN, str(fault))
            else:
                self._supervise(old)
                self._change(State.READY, f"still the previous load; reloading failed: {fault}")
            raise
        except BaseException:
            self._change(State.READY if old else State.UNLOADED)
            if old:
                self._supervise(old)
            raise
        self._install(new)
        if old:
            await self._retire(old)

    async def unload(self) -> None:
        """Refuse new requests, let the running ones finish, end the worker."""
        await self.halt_supervision()
        old = self.loaded
        if old is not None:
            self._change(State.DRAINING, f"{old.in_flight} requests are running")
            await self._retire(old)
        if self.state not in {State.LISTED, State.BROKEN}:
            self.loaded = None
            self._change(State.UNLOADED)

    async def load_adapter(self, name: str, directory: str) -> AdapterInfo:
        """Serve an adapter beside the model. Raises ``Fault``."""
        loaded, host = self._adapter_host()
        info = await host.load_adapter(name, directory)
        loaded.adapters[name] = info
        self._adapters[name] = directory
        self._parts.changed(self.status())
        return info

    async def unload_adapter(self, name: str) -> None:
        """Running requests keep it to their end. Raises ``Fault``."""
        loaded, host = self._adapter_host()
        # First, so that no request comes between.
        loaded.adapters.pop(name, None)
        self._adapters.pop(name, None)
        await host.unload_adapter(name)
        self._parts.changed(self.status())

    def _adapter_host(self) -> tuple[Loaded[T], AdapterHost]:
        if self.loaded is None:
            raise selection.not_ready([self.status()], self.version)
        if not isinstance(self.loaded.backend, AdapterHost):
            message = f"backend {self.on_disk.backend} of {self.on_disk.name} serves no adapters"
            raise Fault(FaultKind.UNSUPPORTED, message, "merge it when packaging: builder package --adapter")
        return self.loaded, self.loaded.backend

    async def halt_supervision(self) -> None:
        """Stop watching the worker, and a restart that is under way."""
        task, self._supervisor = self._supervisor, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _build(self) -> Loaded[T]:
        if self.on_disk.fault is not None:
            raise copy.copy(self.on_disk.fault)
        try:
            return await self._build_unchecked()
        except asyncio.CancelledError:
            raise
        except Fault as fault:
            if fault.kind is FaultKind.INVALID_MODEL and not fault.hint:
                fault.hint = f"look for damage with: builder verify {self.on_disk.directory}"
            raise
        except Exception as error:
            message = f"loading {self.on_disk.name} version {self.version} failed: {error!r}"
            raise Fault(FaultKind.INTERNAL, message, "see the daemon's log") from error

    async def _build_unchecked(self) -> Loaded[T]:
        self._report_progress(0.0, "checking files")
        spec = self._parts.spec_of(self.on_disk)
        spec = msgspec.structs.replace(spec, adapters={**spec.adapters, **self._adapters})
        backend = self._parts.make_backend(spec)
        # At the same time: an engine takes a second to start, a tokenizer a quarter to read.
        preparing = asyncio.ensure_future(self._parts.prepare(self.on_disk))
        loading = asyncio.ensure_future(backend.load(spec, self._report_progress))
        try:
            await asyncio.wait({preparing, loading}, return_when=asyncio.FIRST_EXCEPTION)
            attachment = await preparing  # what is wrong with the folder explains why it cannot be loaded
            info = await loading
        except BaseException:
            await _given_up(preparing, loading)
            await _end(backend)
            raise
        return Loaded(spec, backend, info, attachment)

    def _install(self, loaded: Loaded[T]) -> None:
        self.loaded = loaded
        self._ready_since = time.time()
        self._supervise(loaded)
        self._change(State.READY)

    async def _retire(self, loaded: Loaded[T]) -> None:
        await loaded.drained(self._parts.drain_s)
        await _end(loaded.backend)

    def _supervise(self, loaded: Loaded[T]) -> None:
        self._supervisor = asyncio.create_task(self._watch(loaded), name=f"watch {self.on_disk.name}")

    async def _watch(self, loaded: Loaded[T]) -> None:
        """Restart the worker whenever it dies."""
        policy, failures = self._parts.restart, 0
        while True:
            born = policy.clock()
            fault = await loaded.backend.died()
            if fault is None:
                return
            failures = 1 if policy.clock() - born >= policy.healthy_s else failures + 1
            self.loaded = None
            self._restarts += 1
            self._change(State.RESTARTING, fault.message)
            await _end(loaded.backend)
            while True:
                await policy.sleep(policy.delay_s(failures))
                try:
                    loaded = await self._rebuild()
                    break
                except Fault as again:
                    if policy.is_permanent(again):
                        self._change(State.BROKEN, str(again))
                        return
                    failures += 1
                    self._change(State.RESTARTING, again.message)

    async def _rebuild(self) -> Loaded[T]:
        async with self._lock:
            loaded = await self._build()
            self.loaded = loaded
            self._ready_since = time.time()
            self._change(State.READY)
            return loaded

    def _report_progress(self, fraction: float, text: str) -> None:
        self._progress = (fraction, text)
        self._parts.changed(self.status())

    def _change(self, state: State, reason: str = "") -> None:
        self.state = state
        self._reason = reason
        if state is State.READY:
            self._progress = (1.0, "")
        elif state is not State.RESTARTING:
            self._progress = (0.0, "")
        if state is not State.READY:
            self._ready_since = None
        self._parts.changed(self.status())


def _max_input_tokens(serving: Serving | None, info: ModelInfo | None) -> int:
    if serving is None:
        return 0
    limit = serving.limits.max_input_tokens
    return min(limit, info.context_len - 1) if info else limit


async def _given_up(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _end(backend: ManagedBackend) -> None:
    """Unload whatever happened before: a worker that is already dead may refuse to be asked."""
    with contextlib.suppress(Fault):
        await backend.unload()
