"""What is loaded: finds the version that answers a request, loads, reloads, unloads and restarts versions.

Knows nothing of text or transports. The service asks it; backends come from an injected factory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from contract.faults import Fault, FaultKind
from daemon.backends.base import AdapterInfo, ModelSpec
from daemon.repository import selection
from daemon.repository.disk import VersionOnDisk, adapter_folders, scan
from daemon.repository.loaded import Loaded, T
from daemon.repository.managed import BackendFactory
from daemon.repository.restart import RestartPolicy
from daemon.repository.slot import Prepare, SlotParts, VersionSlot
from daemon.repository.status import ModelStatus, State


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """The settings that concern loading."""

    repositories: Sequence[Path]
    default_model: str | None = None
    """Answers requests that name no model."""
    threads: int = 1
    """Of each worker: all share the machine, and idle ones do not spin."""
    backend_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By backend: laid over the options of the model's serving block."""
    load_concurrency: int = 1
    """Models loading at a time during start."""
    drain_s: float = 600.0
    """Running requests of an unloading version get this long."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)


class Registry(Generic[T]):
    """All versions of all models. One lock per model makes concurrent loads and unloads safe."""

    def __init__(self, config: RegistryConfig, make_backend: BackendFactory, prepare: Prepare[T]) -> None:
        self._config = config
        self._slots: dict[str, dict[str, VersionSlot[T]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._adapter_names_lock = asyncio.Lock()
        """Two models must not get adapters of one name."""
        self._watchers: list[Callable[[ModelStatus], None]] = []
        self._startup: list[str] = []
        self._parts = SlotParts(
            make_backend=make_backend,
            prepare=prepare,
            spec_of=self._spec_of,
            changed=self._notify,
            restart=config.restart,
            drain_s=config.drain_s,
        )

    def watch(self, callback: Callable[[ModelStatus], None]) -> Callable[[], None]:
        """Be told of every change of state and of loading progress; the answer ends that."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    async def rescan(self) -> None:
        """Look at the repository folders again. Raises ``Fault`` if one is missing."""
        seen: dict[str, dict[str, VersionOnDisk]] = {}
        for on_disk in await asyncio.to_thread(scan, self._config.repositories):
            seen.setdefault(on_disk.name, {})[on_disk.version] = on_disk
        for name, versions in seen.items():
            slots = self._slots.setdefault(name, {})
            lock = self._locks.setdefault(name, asyncio.Lock())
            for version, on_disk in versions.items():
                if version in slots:
                    slots[version].rescan(on_disk)
                else:
                    slots[version] = VersionSlot(on_disk, self._parts, lock)
        self._forget(seen)

    async def start(self, names: Sequence[str] | None = None) -> list[Fault]:
        """Load the named models (``NAME`` or ``NAME@VERSION``), or all; the faults of those that failed."""
        await self.rescan()
        self._startup = sorted(self._slots) if names is None else list(names)
        gate = asyncio.Semaphore(max(1, self._config.load_concurrency))

        async def load_one(wanted: str) -> Fault | None:
            async with gate:
                name, version = selection.split(wanted)
                try:
                    await self._load(name, version)
                except Fault as fault:
                    return fault
                return None

        results = await asyncio.gather(*(load_one(wanted) for wanted in self._startup))
        return [fault for fault in results if fault is not None]

    def models(self) -> list[ModelStatus]:
        """Every version, in order of name and version."""
        return [slot.status() for name in sorted(self._slots) for slot in self._ordered(name)]

    def startup_ready(self) -> bool:
        """Whether every model that the start loaded, and that was not unloaded since, is ready."""
        return all(self._is_up(*selection.split(wanted)) for wanted in self._startup)

    def find(self, model: str | None, version: str = "") -> ModelStatus:
        """The version that answers. Raises ``Fault``: NOT_FOUND, NOT_READY, INVALID_REQUEST."""
        return self._select(model, version).status()

    def get(self, model: str | None, version: str = "") -> Loaded[T]:
        """The same as an object to serve with. Take its ``lease`` before the next await."""
        slot = self._select(model, version)
        if slot.loaded is None:
            raise selection.not_ready([slot.status()], slot.version)
        return slot.loaded

    def locate(self, model: str | None, version: str = "") -> tuple[Loaded[T], str | None]:
        """What serves a name, which may be an adapter's: then its model and the adapter. Raises ``Fault``."""
        loaded = self.get(model, version)
        name = selection.split(model or "")[0]
        return loaded, name if name in loaded.adapters and name not in self._slots else None

    async def load_adapter(self, model: str | None, name: str, directory: str) -> AdapterInfo:
        """Serve a LoRA adapter beside a loaded model, under a name of its own. Raises ``Fault``."""
        async with self._adapter_names_lock:
            slot = self._select(model, "")
            holder = self._adapter_slot(name)
            if name in self._slots or (holder is not None and holder is not slot):
                taken_by = f"an adapter of {holder.on_disk.name}" if holder else "a model"
                message = f"the name {name!r} is taken by {taken_by}"
                raise Fault(FaultKind.ALREADY_EXISTS, message, "choose another name")
            async with self._locks[slot.on_disk.name]:
                return await slot.load_adapter(name, directory)

    async def unload_adapter(self, name: str) -> None:
        """Raises ``Fault`` when nothing serves an adapter of this name."""
        slot = self._adapter_slot(name)
        if slot is None:
            raise selection.unknown_adapter(name, self._adapter_names())
        async with self._locks[slot.on_disk.name]:
            await slot.unload_adapter(name)

    def loaded(self) -> list[Loaded[T]]:
        """Everything that serves now."""
        return [
            slot.loaded
            for name in sorted(self._slots)
            for slot in self._ordered(name)
            if slot.loaded is not None
        ]

    async def load(self, name: str, version: str = "") -> None:
        """Load or reload; without a version the highest on disk, which then replaces lower ones."""
        await self.rescan()
        await self._load(name, version)

    async def unload(self, name: str, version: str = "") -> None:
        """Drain and unload one version or all. Unloading what is not loaded does nothing."""
        name, version = selection.split(name, version)
        slots = [slot for slot in self._ordered(name) if version in {"", slot.version}]
        if not slots:
            return
        if not any(slot.loaded for slot in self._slots[name].values() if slot not in slots):
            # What someone unloads on purpose no longer makes the daemon unready.
            self._startup = [wanted for wanted in self._startup if selection.split(wanted)[0] != name]
        for slot in slots:
            await slot.halt_supervision()
        async with self._locks[name]:
            await asyncio.gather(*(slot.unload() for slot in slots))

    async def stop(self) -> None:
        """Unload everything."""
        await asyncio.gather(*(self.unload(name) for name in list(self._slots)))

    async def _load(self, name: str, version: str) -> None:
        name, version = selection.split(name, version)
        slots = self._slots.get(name)
        if not slots:
            raise selection.unknown_model(name, self._slots)
        on_disk = {slot.version: slot for slot in self._ordered(name) if not slot.vanished}
        if not on_disk:
            raise selection.unknown_model(name, self._slots)
        slot = on_disk.get(version) if version else list(on_disk.values())[-1]
        if slot is None:
            raise selection.unknown_version(name, version, on_disk)
        joined = slot.state is State.LOADING
        if slot.state is State.RESTARTING:
            await slot.halt_supervision()
        async with self._locks[name]:
            if not (joined and slot.state is State.READY):
                await slot.load()
            slot.pinned = bool(version)
            if not version:
                older = [other for other in slots.values() if other is not slot and not other.pinned]
                await asyncio.gather(*(other.unload() for other in older if other.loaded))

    def _select(self, model: str | None, version: str) -> VersionSlot[T]:
        if not model:
            ready = [name for name in self._slots if any(s.loaded for s in self._slots[name].values())]
            model = selection.default_model(self._config.default_model, ready, self.models())
        name, version = selection.split(model, version)
        slots = self._slots.get(name)
        if not slots:
            adapted = self._adapter_slot(name, version)
            if adapted is None:
                raise selection.unknown_model(name, [*self._slots, *self._adapter_names()])
            if adapted.state is not State.READY:
                raise selection.not_ready([adapted.status()], adapted.version)
            return adapted
        if version and version not in slots:
            raise selection.unknown_version(name, version, slots)
        candidates = [slots[version]] if version else self._ordered(name)
        for slot in reversed(candidates):
            if slot.state is State.READY:
                return slot
        raise selection.not_ready([slot.status() for slot in candidates], version)

    def _adapter_slot(self, name: str, version: str = "") -> VersionSlot[T] | None:
        """The version that serves an adapter of this name; the highest, unless one is asked for."""
        for model in self._slots:
            for slot in reversed(self._ordered(model)):
                if name in slot.adapters and version in {"", slot.version}:
                    return slot
        return None

    def _adapter_names(self) -> list[str]:
        return sorted({name for loaded in self.loaded() for name in loaded.adapters})

    def _is_up(self, name: str, version: str) -> bool:
        try:
            self._select(name, version)
        except Fault:
            return False
        return True

    def _ordered(self, name: str) -> list[VersionSlot[T]]:
        slots = self._slots.get(name, {})
        return [slots[version] for version in sorted(slots, key=lambda text: int(text or "0"))]

    def _forget(self, seen: Mapping[str, Mapping[str, VersionOnDisk]]) -> None:
        """Drop versions whose folder is gone and that nothing holds."""
        gone = {State.LISTED, State.UNLOADED, State.BROKEN}
        for name, slots in list(self._slots.items()):
            for version, slot in list(slots.items()):
                slot.vanished = version not in seen.get(name, {})
                if slot.vanished and slot.state in gone:
                    del slots[version]
            if not slots and not self._locks[name].locked():
                del self._slots[name]

    def _spec_of(self, on_disk: VersionOnDisk) -> ModelSpec:
        options = dict(on_disk.serving.options) if on_disk.serving else {}
        options.update(self._config.backend_options.get(on_disk.backend, {}))
        return ModelSpec(
            name=on_disk.name,
            version=on_disk.version,
            directory=str(on_disk.directory),
            backend=on_disk.backend,
            options=options,
            threads=self._config.threads,
            adapters=adapter_folders(on_disk),
            promised_bytes=sum(loaded.promised_bytes for loaded in self.loaded()),
        )

    def _notify(self, status: ModelStatus) -> None:
        for callback in list(self._watchers):
            callback(status)
