"""Folders that come and go, and models that stay broken, while the daemon runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contract.faults import Fault, FaultKind
from daemon.repository.disk import VersionOnDisk
from daemon.repository.registry import Registry, RegistryConfig
from daemon.repository.status import State
from tests.fakes import FakeBackends, write_model


async def prepare(on_disk: VersionOnDisk) -> str:
    return on_disk.version


def registry(repository: Path) -> Registry[str]:
    return Registry(RegistryConfig(repositories=[repository], drain_s=0.05), FakeBackends(), prepare)


def states(of: Registry[str]) -> dict[str, State]:
    return {f"{one.name}@{one.version}": one.state for one in of.models()}


async def test_removing_the_newest_version_rolls_back(tmp_path: Path) -> None:
    write_model(tmp_path, "m", version="1")
    write_model(tmp_path, "m", version="2")
    models = registry(tmp_path)
    await models.start()
    assert models.find("m").version == "2"
    shutil.rmtree(tmp_path / "m" / "2")
    await models.rescan()
    assert models.find("m").version == "2"
    with pytest.raises(Fault, match="version 2 is not found") as caught:
        await models.load("m", "2")
    assert caught.value.kind is FaultKind.NOT_FOUND
    await models.load("m")
    assert models.find("m").version == "1"
    await models.rescan()
    assert states(models) == {"m@1": State.READY}
    await models.stop()


async def test_a_model_whose_folder_is_gone_serves_on_and_is_not_loaded_again(tmp_path: Path) -> None:
    write_model(tmp_path, "m")
    models = registry(tmp_path)
    await models.start()
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(Fault) as caught:
        await models.load("m")
    assert caught.value.kind is FaultKind.NOT_FOUND
    assert models.find("m").state is State.READY
    await models.stop()


async def test_a_model_that_failed_keeps_its_reason_when_others_are_loaded(tmp_path: Path) -> None:
    write_model(tmp_path, "bad", backend="broken")
    write_model(tmp_path, "good")
    models = registry(tmp_path)
    await models.start()
    await models.load("good")
    bad = models.models()[0]
    assert (bad.state, "lacks a tensor" in bad.reason) == (State.BROKEN, True)
    await models.stop()


async def test_a_folder_that_is_mended_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    models = registry(tmp_path)
    await models.start()
    assert states(models) == {"m@1": State.BROKEN}
    shutil.rmtree(tmp_path / "m")
    write_model(tmp_path, "m")
    await models.rescan()
    assert states(models) == {"m@1": State.LISTED}
    await models.load("m")
    assert states(models) == {"m@1": State.READY}
    await models.stop()
