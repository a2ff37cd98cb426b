"""Loading, reloading, unloading, restarting: which state each leaves, and who answers meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.base import ModelInfo, ModelSpec, Progress
from daemon.repository.disk import VersionOnDisk
from daemon.repository.registry import Registry, RegistryConfig
from daemon.repository.restart import RestartPolicy
from daemon.repository.status import ModelStatus, State
from tests.fakes import EchoBackend, FakeBackends, until, write_model


class GatedBackend(EchoBackend):
    """Loads when the test says so, and as the test says."""

    gate: asyncio.Event
    fault: Fault | None = None

    async def load(self, spec: ModelSpec, progress: Progress) -> ModelInfo:
        progress(0.4, "reading weights")
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return await super().load(spec, progress)


class Delays:
    """Stands in for sleeping: notes the delays, and lets go at once."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.seen.append(seconds)
        await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now


async def prepare(on_disk: VersionOnDisk) -> str:
    return f"text of {on_disk.version}"


def registry(
    repository: Path, backends: FakeBackends | None = None, delays: Delays | None = None, **settings: object
) -> Registry[str]:
    delays = delays or Delays()
    policy = RestartPolicy(sleep=delays.sleep, clock=delays.clock)
    config = RegistryConfig(repositories=[repository], restart=policy, drain_s=0.05, **settings)  # type: ignore[arg-type]
    return Registry(config, backends or FakeBackends(), prepare)


def states(of: Registry[str]) -> dict[str, State]:
    return {f"{one.name}@{one.version}": one.state for one in of.models()}


async def test_a_damaged_model_says_what_to_do(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m")

    async def refuse(on_disk: VersionOnDisk) -> str:
        raise Fault(FaultKind.INVALID_MODEL, "its tensors are wrong")

    models = Registry(RegistryConfig(repositories=[tmp_path]), FakeBackends(), refuse)
    (fault,) = await models.start()
    assert fault.hint == f"look for damage with: builder verify {folder}"
    await models.stop()


async def test_what_is_wrong_with_the_folder_is_told_before_what_the_engine_says(tmp_path: Path) -> None:
    write_model(tmp_path, "m", backend="broken")

    async def refuse(on_disk: VersionOnDisk) -> str:
        await asyncio.sleep(0.01)
        raise Fault(FaultKind.VERIFICATION_FAILED, "a file is damaged")

    backends = FakeBackends()
    models = Registry(RegistryConfig(repositories=[tmp_path]), backends, refuse)
    (fault,) = await models.start()
    assert fault.kind is FaultKind.VERIFICATION_FAILED
    assert backends.last("m").unloaded


async def test_start_loads_the_highest_version_of_each(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        write_model(tmp_path, "m", version=version)
    write_model(tmp_path, "bad", backend="broken")
    write_model(tmp_path, "odd", backend="vllm")
    models = registry(tmp_path)
    faults = await models.start()
    assert states(models) == {
        "bad@1": State.BROKEN,
        "m@1": State.LISTED,
        "m@2": State.LISTED,
        "m@10": State.READY,
        "odd@1": State.BROKEN,
    }
    assert [fault.message for fault in faults] == [
        "bad lacks a tensor",
        "backend vllm is not available in this installation",
    ]
    assert not models.startup_ready()
    assert models.get("m").attachment == "text of 10"
    assert models.find(None).name == "m"
    await models.stop()


async def test_start_with_names(tmp_path: Path) -> None:
    write_model(tmp_path, "a")
    write_model(tmp_path, "b", version="1")
    write_model(tmp_path, "b", version="2")
    models = registry(tmp_path)
    (fault,) = await models.start(["b@1", "c"])
    assert fault.kind is FaultKind.NOT_FOUND
    assert "a, b" in fault.hint
    assert states(models) == {"a@1": State.LISTED, "b@1": State.READY, "b@2": State.LISTED}
    await models.stop()


async def test_which_model_answers(tmp_path: Path) -> None:
    models = registry(tmp_path)
    await models.start()
    with pytest.raises(Fault, match="holds no models"):
        models.find(None)
    write_model(tmp_path, "a")
    write_model(tmp_path, "b")
    await models.rescan()
    with pytest.raises(Fault, match="no available versions: version 1 is listed") as caught:
        models.find("a")
    assert caught.value.details["state"] == "listed"
    await models.load("a")
    await models.load("b")
    with pytest.raises(Fault, match="names no model") as caught:
        models.find(None)
    assert caught.value.kind is FaultKind.INVALID_REQUEST
    assert "a, b" in caught.value.hint
    assert models.find("a@1").version == "1"
    assert registry(tmp_path).models() == []
    await models.stop()


async def test_the_default_model(tmp_path: Path) -> None:
    write_model(tmp_path, "a")
    write_model(tmp_path, "b")
    models = registry(tmp_path, default_model="b")
    await models.start()
    assert models.find(None).name == "b"
    await models.stop()


async def test_loading_is_told_with_progress(tmp_path: Path) -> None:
    GatedBackend.gate = asyncio.Event()
    write_model(tmp_path, "m", backend="gated")
    models = registry(tmp_path, FakeBackends({"gated": GatedBackend}))
    seen: list[ModelStatus] = []
    unwatch = models.watch(seen.append)
    task = asyncio.create_task(models.start())
    await until(lambda: any(one.progress == 0.4 for one in seen))
    with pytest.raises(Fault, match=r"loading, 40% \(reading weights\)") as caught:
        models.get("m")
    assert caught.value.kind is FaultKind.NOT_READY
    assert caught.value.details["progress"] == 0.4
    GatedBackend.gate.set()
    assert await task == []
    assert seen[-1].state is State.READY
    unwatch()
    count = len(seen)
    await models.stop()
    assert len(seen) == count
    assert states(models) == {"m@1": State.UNLOADED}


async def test_concurrent_loads_are_one(tmp_path: Path) -> None:
    GatedBackend.gate = asyncio.Event()
    write_model(tmp_path, "m", backend="gated")
    backends = FakeBackends({"gated": GatedBackend})
    models = registry(tmp_path, backends)
    tasks = [asyncio.create_task(models.load("m")) for _ in range(3)]
    await until(lambda: states(models).get("m@1") is State.LOADING)
    await asyncio.sleep(0.01)
    GatedBackend.gate.set()
    await asyncio.gather(*tasks)
    assert len(backends.made) == 1
    await models.stop()


async def test_reload_serves_the_old_until_the_new_is_ready(tmp_path: Path) -> None:
    GatedBackend.gate = asyncio.Event()
    GatedBackend.gate.set()
    write_model(tmp_path, "m", backend="gated")
    backends = FakeBackends({"gated": GatedBackend})
    models = registry(tmp_path, backends)
    await models.start()
    old = models.get("m")
    GatedBackend.gate.clear()
    task = asyncio.create_task(models.load("m"))
    await until(lambda: len(backends.made) == 2)
    assert models.get("m") is old
    GatedBackend.gate.set()
    await task
    assert models.get("m") is not old
    assert backends.made[0][1].unloaded
    await models.stop()


async def test_a_failed_reload_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GatedBackend.gate = asyncio.Event()
    GatedBackend.gate.set()
    write_model(tmp_path, "m", backend="gated")
    models = registry(tmp_path, FakeBackends({"gated": GatedBackend}))
    await models.start()
    old = models.get("m")
    monkeypatch.setattr(GatedBackend, "fault", Fault(FaultKind.OUT_OF_MEMORY, "no room"))
    with pytest.raises(Fault, match="no room"):
        await models.load("m")
    assert models.get("m") is old
    assert "no room" in models.find("m").reason
    await models.stop()


async def test_a_new_version_replaces_the_old_one(tmp_path: Path) -> None:
    write_model(tmp_path, "m")
    models = registry(tmp_path)
    await models.start()
    write_model(tmp_path, "m", version="2")
    await models.load("m")
    assert states(models) == {"m@1": State.UNLOADED, "m@2": State.READY}
    await models.load("m", "1")
    await models.load("m")
    assert states(models) == {"m@1": State.READY, "m@2": State.READY}
    assert models.find("m").version == "2"
    await models.unload("m", "2")
    assert models.find("m").version == "1"
    with pytest.raises(Fault, match="version 2 is not at ready state"):
        models.find("m", "2")
    await models.stop()


async def test_unload_waits_for_requests_and_refuses_new_ones(tmp_path: Path) -> None:
    write_model(tmp_path, "m")
    backends = FakeBackends()
    models = Registry(RegistryConfig(repositories=[tmp_path], drain_s=5), backends, prepare)
    await models.start()
    with models.get("m").lease():
        task = asyncio.create_task(models.unload("m"))
        await until(lambda: states(models)["m@1"] is State.DRAINING)
        with pytest.raises(Fault, match="draining"):
            models.get("m")
        assert not backends.last("m").unloaded
    await task
    assert backends.last("m").unloaded
    await models.unload("m")
    await models.unload("nobody")
    assert models.startup_ready()


async def test_a_dead_worker_is_restarted_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, "m")
    backends, delays = FakeBackends(), Delays()
    models = registry(tmp_path, backends, delays)
    await models.start()
    backends.last("m").die()
    await until(lambda: len(backends.made) == 2 and states(models)["m@1"] is State.READY)
    assert models.find("m").restarts == 1
    assert delays.seen == [0.0]
    assert backends.made[0][1].unloaded
    await models.stop()


async def test_restarts_back_off_and_recover(tmp_path: Path) -> None:
    write_model(tmp_path, "m")
    backends, delays = FakeBackends(), Delays()
    models = registry(tmp_path, backends, delays)
    await models.start()
    for death in range(1, 9):
        backends.last("m").die()
        await until(lambda: len(backends.made) == death + 1 and states(models)["m@1"] is State.READY)  # noqa: B023
    assert delays.seen == [0, 1, 2, 4, 8, 16, 30, 30]
    delays.now += 1000
    backends.last("m").die()
    await until(lambda: len(backends.made) == 10)
    assert delays.seen[-1] == 0
    await models.stop()


async def test_a_restart_that_cannot_help_is_broken(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m")
    backends = FakeBackends()
    models = registry(tmp_path, backends)
    await models.start()
    (folder / "config.json").unlink()
    await models.rescan()
    backends.last("m").die()
    await until(lambda: states(models)["m@1"] is State.BROKEN)
    assert "config.json" in models.models()[0].reason
    write_model(tmp_path, "other")
    await models.load("other")
    await models.stop()


async def test_unload_ends_restarting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GatedBackend.gate = asyncio.Event()
    GatedBackend.gate.set()
    write_model(tmp_path, "m", backend="gated")
    backends = FakeBackends({"gated": GatedBackend})
    models = registry(tmp_path, backends)
    await models.start()
    GatedBackend.gate.clear()
    backends.last("m").die()
    await until(lambda: len(backends.made) == 2)
    with pytest.raises(Fault, match="restarting: the worker was killed"):
        models.get("m")
    await models.unload("m")
    assert states(models) == {"m@1": State.UNLOADED}
    assert backends.made[1][1].unloaded
    GatedBackend.gate.set()
    await models.load("m")
    assert states(models) == {"m@1": State.READY}
    await models.stop()


async def test_options_and_threads_reach_the_backend(tmp_path: Path) -> None:
    write_model(tmp_path, "m", serving={"options": {"a": 1, "b": 1}})
    backends = FakeBackends()
    models = registry(tmp_path, backends, threads=3, backend_options={"echo": {"b": 2}})
    await models.start()
    spec, _ = backends.made[0]
    assert (spec.options, spec.threads, spec.backend) == ({"a": 1, "b": 2}, 3, "echo")
    await models.stop()


async def test_folders_that_vanish(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m")
    models = registry(tmp_path)
    await models.start()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.parent.rmdir()
    await models.rescan()
    assert states(models) == {"m@1": State.READY}
    await models.unload("m")
    await models.rescan()
    assert states(models) == {}
