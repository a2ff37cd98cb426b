"""Workers are real processes here, and they really die."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.base import InferRequest, ModelSpec, TokenEvent
from daemon.backends.mock import MockBackend
from daemon.backends.worker import WorkerBackend, WorkerTensorBackend
from tests.control_group import control_group
from tests.fakes_engine import collect, install_backend, mock_spec, request, silent, tokens_of, write_model


@pytest.fixture
async def worker() -> AsyncIterator[WorkerBackend]:
    backend = WorkerBackend(grace_s=2.0)
    yield backend
    await backend.unload()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def proc_file(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


async def load(worker: WorkerBackend, folder: Path, **options: Any) -> int:
    await worker.load(mock_spec(folder, **{"tokens_per_s": 0, **options}), silent)
    assert worker.pid is not None
    return worker.pid


async def test_answers_equal_those_of_the_backend_itself(worker: WorkerBackend, tmp_path: Path) -> None:
    spec = mock_spec(write_model(tmp_path), tokens_per_s=0)
    direct = MockBackend()
    assert await worker.load(spec, silent) == await direct.load(spec, silent)
    asked = request([5, 6, 7], stop_token_ids=(2,), logprobs=2, prompt_logprobs=1)
    here, there = await collect(direct.generate(asked)), await collect(worker.generate(asked))
    assert tokens_of(there) == tokens_of(here)
    assert [c for e in there for c in e.choices or ()] == [c for e in here for c in e.choices or ()]
    assert there[0].prompt_choices == here[0].prompt_choices
    assert there[-1].finish == "stop"


async def test_progress_is_relayed(worker: WorkerBackend, tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    await worker.load(mock_spec(tmp_path, load_s=0.2), lambda *step: seen.append(step))
    assert seen[-1] == (1.0, "ready")
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)


async def test_process_shows_its_model_and_its_threads(worker: WorkerBackend, tmp_path: Path) -> None:
    pid = await load(worker, tmp_path)
    assert b"toy@1" in proc_file(pid, "cmdline").split(b"\0")
    assert b"OMP_NUM_THREADS=1" in proc_file(pid, "environ").split(b"\0")
    assert os.getpgid(pid) == pid


async def test_fault_of_loading_comes_through(worker: WorkerBackend, tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        await worker.load(mock_spec(tmp_path, fail_load="no such weights"), silent)
    assert caught.value.kind is FaultKind.INVALID_MODEL
    assert worker.pid is None


async def test_unknown_backend_is_a_fault(worker: WorkerBackend, tmp_path: Path) -> None:
    spec = ModelSpec(name="toy", version="1", directory=str(tmp_path), backend="nonsense")
    with pytest.raises(Fault, match="nonsense"):
        await worker.load(spec, silent)


async def test_fault_of_a_request_comes_through_and_spares_the_others(
    worker: WorkerBackend, tmp_path: Path
) -> None:
    await load(worker, write_model(tmp_path))
    with pytest.raises(Fault) as caught:
        await collect(worker.generate(request([100_000])))
    assert caught.value.kind is FaultKind.INVALID_REQUEST
    assert tokens_of(await collect(worker.generate(request([5], max_tokens=2)))) == [5, 5]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_death_fails_everything_in_flight_at_once(
    worker: WorkerBackend, tmp_path: Path, number: signal.Signals
) -> None:
    pid = await load(worker, tmp_path, tokens_per_s=20.0)
    calls = [asyncio.create_task(collect(worker.generate(request([1], max_tokens=1000)))) for _ in range(8)]
    death = asyncio.create_task(worker.died())
    await asyncio.sleep(0.2)
    start = time.monotonic()
    os.kill(pid, number)
    faults = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - start < 1.0
    for fault in faults:
        assert isinstance(fault, Fault)
        assert fault.kind is FaultKind.MODEL_CRASHED
        assert "toy@1" in fault.message
        assert number.name in fault.message
        assert "it is being restarted; try again" in fault.hint
        assert fault.details["signal"] == number
    crash = await death
    assert crash is not None
    assert crash.kind is FaultKind.MODEL_CRASHED
    with pytest.raises(Fault) as caught:
        await collect(worker.generate(request([1])))
    assert caught.value.kind is FaultKind.MODEL_CRASHED
    with pytest.raises(Fault):
        await worker.stats()


async def test_a_kill_by_the_kernel_for_memory_is_told_as_such(worker: WorkerBackend, tmp_path: Path) -> None:
    pid = await load(worker, tmp_path, tokens_per_s=50.0)
    with control_group() as group:
        running = asyncio.create_task(collect(worker.generate(request([1] * 3000, max_tokens=4000))))
        await asyncio.sleep(0.1)
        group.take(pid, 4096)
        with pytest.raises(Fault) as caught:
            await collect(worker.generate(request(list(range(900)) * 4, max_tokens=10)))
        assert caught.value.kind is FaultKind.MODEL_CRASHED
        assert "SIGKILL" in caught.value.message
        assert "often for lack of memory" in caught.value.message
        with pytest.raises(Fault):
            await running


async def test_a_worker_that_hangs_with_requests_is_killed(tmp_path: Path) -> None:
    worker = WorkerBackend(grace_s=2.0, patience_s=0.8)
    pid = await load(worker, tmp_path, tokens_per_s=50.0)
    running = asyncio.create_task(collect(worker.generate(request([1] * 3000, max_tokens=4000))))
    death = asyncio.create_task(worker.died())
    await asyncio.sleep(1.2)
    assert not running.done(), "tokens are progress"
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        with pytest.raises(Fault, match=r"had requests and made no progress for 0\.8 s") as caught:
            await running
        assert await death is not None
    assert caught.value.kind is FaultKind.MODEL_CRASHED
    assert not alive(pid)
    await worker.unload()


async def test_a_worker_that_answers_and_gets_nowhere_is_killed(tmp_path: Path) -> None:
    worker = WorkerBackend(grace_s=2.0, patience_s=0.4)
    await load(worker, tmp_path, first_token_s=1000.0)
    async with asyncio.timeout(10):
        with pytest.raises(Fault, match="made no progress"):
            await collect(worker.generate(request([1])))
    await worker.unload()


async def test_a_worker_without_requests_may_rest(tmp_path: Path) -> None:
    worker = WorkerBackend(grace_s=2.0, patience_s=0.2)
    pid = await load(worker, tmp_path)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.6)
    os.kill(pid, signal.SIGCONT)
    assert tokens_of(await collect(worker.generate(request([5], max_tokens=2)))) == [5, 5]
    await worker.unload()


async def test_crash_keeps_the_tokens_that_came_before(worker: WorkerBackend, tmp_path: Path) -> None:
    await load(worker, tmp_path, crash_after=3)
    got: list[TokenEvent] = []

    async def read() -> None:
        async for event in worker.generate(request([7], max_tokens=100)):
            got.append(event)  # noqa: PERF401

    with pytest.raises(Fault) as caught:
        await read()
    assert caught.value.kind is FaultKind.MODEL_CRASHED
    assert tokens_of(got) == [7, 7, 7]


async def test_closing_the_iterator_cancels_in_the_worker(worker: WorkerBackend, tmp_path: Path) -> None:
    await load(worker, tmp_path, tokens_per_s=100.0)
    events = worker.generate(request([1], max_tokens=4000))
    await anext(events)
    assert (await worker.stats()).running == 1
    await events.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(1.0):
        while (await worker.stats()).running:
            pass


async def test_slow_reader_gets_everything_and_stalls_nobody(worker: WorkerBackend, tmp_path: Path) -> None:
    await load(worker, tmp_path)
    slow = worker.generate(request([1], max_tokens=3000))
    first = await anext(slow)
    others = [collect(worker.generate(request([2], max_tokens=1000))) for _ in range(4)]
    assert all(len(tokens_of(events)) == 1000 for events in await asyncio.gather(*others))
    rest = await collect(slow)
    assert len(tokens_of([first, *rest])) == 3000
    assert len(rest[0].token_ids) > 100


async def test_unload_fails_requests_and_ends_the_process(worker: WorkerBackend, tmp_path: Path) -> None:
    pid = await load(worker, tmp_path, tokens_per_s=5.0)
    call = asyncio.create_task(collect(worker.generate(request([1], max_tokens=1000))))
    death = asyncio.create_task(worker.died())
    await asyncio.sleep(0.1)
    start = time.monotonic()
    await worker.unload()
    assert time.monotonic() - start < 1.5
    assert not alive(pid)
    assert await death is None
    with pytest.raises(Fault) as caught:
        await call
    assert caught.value.kind is FaultKind.NOT_READY
    await worker.unload()


async def test_hung_worker_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    worker = WorkerBackend(grace_s=0.2)
    pid = await load(worker, tmp_path)
    os.kill(pid, signal.SIGSTOP)
    await worker.unload()
    assert not alive(pid)


async def test_cancelled_load_leaves_no_process(worker: WorkerBackend, tmp_path: Path) -> None:
    loading = asyncio.create_task(worker.load(mock_spec(tmp_path, load_s=60.0), silent))
    await asyncio.sleep(0.3)
    pid = worker.pid
    assert pid is not None
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not alive(pid)


async def test_death_while_loading_quotes_the_last_lines(
    worker: WorkerBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(tmp_path, monkeypatch, plugin('print("warming up"); os._exit(7)'))
    spec = ModelSpec(name="toy", version="1", directory=str(tmp_path), backend="plugged")
    with pytest.raises(Fault, match="exit code 7") as caught:
        await worker.load(spec, silent)
    assert "warming up" in caught.value.message
    assert caught.value.details["exit_code"] == 7
    assert caught.value.details["output"] == ["warming up"]


async def test_requests_before_loading_are_refused(worker: WorkerBackend, tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        await collect(worker.generate(request([1])))
    assert caught.value.kind is FaultKind.NOT_READY
    with pytest.raises(Fault):
        await worker.died()
    await load(worker, tmp_path)
    with pytest.raises(Fault, match="already serves"):
        await load(worker, tmp_path)


async def test_output_goes_to_the_log_with_its_level(
    worker: WorkerBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    body = 'logging.getLogger("x").warning("low battery"); print("half\\rdone"); raise ValueError("bad luck")'
    install_backend(tmp_path, monkeypatch, plugin(body))
    spec = ModelSpec(name="toy", version="1", directory=str(tmp_path), backend="plugged")
    with caplog.at_level(logging.INFO), pytest.raises(Fault, match="ValueError: bad luck"):
        await worker.load(spec, silent)
    levels = {record.getMessage(): record.levelno for record in caplog.records}
    assert levels["toy@1: low battery"] == logging.WARNING
    assert levels["toy@1: done"] == logging.INFO
    assert "ValueError: bad luck" in "\n".join(worker.last_lines)


async def test_garbage_from_a_worker_ends_it(
    worker: WorkerBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "os.write(int(sys.argv[2]), bytes([0, 0, 0, 2, 193, 193]))"
    install_backend(tmp_path, monkeypatch, plugin(body))
    spec = ModelSpec(name="toy", version="1", directory=str(tmp_path), backend="plugged")
    with pytest.raises(Fault, match="a frame cannot be read") as caught:
        await worker.load(spec, silent)
    assert caught.value.kind is FaultKind.MODEL_CRASHED
    assert "memory" not in caught.value.message


async def test_tensor_backend_streams_with_bounded_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(tmp_path, monkeypatch, plugin(), "mindport.tensor_backends")
    worker = WorkerTensorBackend()
    spec = ModelSpec(name="toy", version="1", directory=str(tmp_path), backend="plugged")
    try:
        assert await worker.load(spec, silent) == {"name": "toy"}
        responses = worker.infer(InferRequest(request_id="r", inputs=[], parameters={"count": 20}))
        await anext(responses)
        await asyncio.sleep(0.2)
        produced = (await worker.stats()).tokens_generated
        assert produced <= 7
        assert len([outputs async for outputs in responses]) == 19
        with pytest.raises(Fault, match="told to fail"):
            async for _ in worker.infer(InferRequest(request_id="r", inputs=[], parameters={"count": -1})):
                pass
    finally:
        await worker.unload()


async def test_wrong_contract_is_a_fault(tmp_path: Path) -> None:
    worker = WorkerTensorBackend()
    with pytest.raises(Fault, match="not a tensor backend"):
        await worker.load(mock_spec(tmp_path), silent)
    assert worker.pid is None


def test_worker_dies_with_the_daemon(tmp_path: Path) -> None:
    """The daemon is killed while its worker is stopped and could not notice anything itself."""
    program = f"""
        import asyncio, os, signal
        from pathlib import Path
        from daemon.backends.worker import WorkerBackend
        from tests.fakes_engine import mock_spec, silent
        async def main():
            worker = WorkerBackend()
            await worker.load(mock_spec(Path({str(tmp_path)!r})), silent)
            os.kill(worker.pid, signal.SIGSTOP)
            print(worker.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    pid = int(ran.stdout)
    deadline = time.monotonic() + 5
    while alive(pid) and not zombie(pid):
        assert time.monotonic() < deadline, "the worker outlived the daemon"
        time.sleep(0.01)


def zombie(pid: int) -> bool:
    """Dead, and whoever adopted it has not reaped it yet."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return True


_PLUGIN = """
import logging, os, sys
from contract.faults import Fault, FaultKind
from daemon.backends.base import BackendStats

class Backend:
    produced = 0
    async def load(self, spec, progress):
        {load_body}
        return {{"name": spec.name}}
    async def infer(self, request):
        if request.parameters["count"] < 0:
            raise Fault(FaultKind.INTERNAL, "told to fail")
        for _ in range(request.parameters["count"]):
            self.produced += 1
            yield []
    async def stats(self):
        return BackendStats(tokens_generated=self.produced)
    async def unload(self):
        pass
"""


def plugin(load_body: str = "pass") -> str:
    return _PLUGIN.format(load_body=load_body)
