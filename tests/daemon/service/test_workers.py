"""The service over real worker processes: a crash fails the request clearly, and the model comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.generation import Delta, Failed, Finished
from daemon.backends.worker import WorkerBackend
from daemon.repository.registry import Registry, RegistryConfig
from daemon.repository.status import State
from daemon.service.daemon_service import DaemonService
from daemon.service.text_model import prepare_text_model
from tests.fakes import request_of, until, write_model


def service_over(repository: Path) -> DaemonService:
    config = RegistryConfig(repositories=[repository], drain_s=5)
    return DaemonService(Registry(config, lambda spec: WorkerBackend(), prepare_text_model))


async def test_an_answer_from_another_process(tmp_path: Path) -> None:
    write_model(tmp_path, "m", backend="mock", serving={"options": {"tokens_per_s": 0}})
    service = service_over(tmp_path)
    assert await service.start() == []
    pid = service.find("m").pid
    assert pid is not None
    events = [event async for event in service.generate(request_of("Hello 生抽"))]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "Hello 生抽"
    assert isinstance(events[-1], Finished)
    stream = service.generate(request_of("Hello", sampling={"ignore_eos": True}))
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    await service.stop(5)
    assert service.models()[0].state is State.UNLOADED
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_crash_and_a_restart(tmp_path: Path) -> None:
    write_model(tmp_path, "m", backend="mock", serving={"options": {"tokens_per_s": 0, "crash_after": 2}})
    service = service_over(tmp_path)
    await service.start()
    pid = service.find("m").pid
    events = [event async for event in service.generate(request_of("Hello world, hello"))]
    assert isinstance(events[-1], Failed)
    assert events[-1].fault["kind"] == "model_crashed"
    await until(lambda: service.models()[0].restarts == 1 and service.models()[0].state is State.READY)
    assert service.find("m").pid not in {None, pid}
    await service.stop(5)
