from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.base import ModelSpec, TokenEvent, TokenRequest
from daemon.backends.ms.backend import LoadRunner, MsBackend
from daemon.backends.ms.runner import RunnerOptions
from daemon.backends.worker import WorkerBackend
from tests.daemon.backends.ms.tiny_telechat2 import random_weights, write_model
from tests.fakes_engine import FakeRunner, collect, install_backend, request, silent, tokens_of, toy_answer

TINY_CONTEXT = 256
LEAST_BLOCKS = TINY_CONTEXT // 16


def spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec(
        name="tiny", version="1", directory=str(folder), backend="ms", options=options, threads=2
    )


def loader(seen: list[RunnerOptions], runner: FakeRunner | None = None) -> LoadRunner:
    """In place of ``ModelRunner.load``."""

    def load(
        model_dir: Path, *, options: RunnerOptions, progress: Callable[[float, str], None]
    ) -> FakeRunner:
        assert (model_dir / "config.json").exists()
        progress(1.0, "ready")
        seen.append(options)
        return runner or FakeRunner(
            num_blocks=options.num_blocks, max_rows=options.max_rows, max_logit_rows=options.max_logit_rows
        )

    return load


async def until_running(backend: MsBackend, count: int) -> None:
    async with asyncio.timeout(5):
        while (await backend.stats()).running != count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny" / "1")


@pytest.fixture
async def toy(folder: Path) -> AsyncIterator[MsBackend]:
    """Loaded, over the toy runner."""
    backend = MsBackend(loader([]))
    await backend.load(spec(folder), silent)
    yield backend
    await backend.unload()


@pytest.fixture
async def worker() -> AsyncIterator[WorkerBackend]:
    backend = WorkerBackend()
    yield backend
    await backend.unload()


async def test_load_describes_the_model_and_forecasts_the_cache(folder: Path) -> None:
    seen: list[RunnerOptions] = []
    progress: list[float] = []
    backend = MsBackend(loader(seen))
    info = await backend.load(
        spec(folder, max_sequences=3, kv_cache_bytes=10**6, dtype="bfloat16"),
        lambda fraction, _: progress.append(fraction),
    )
    await backend.unload()
    (options,) = seen
    per_block = 3 * 2 * (8 + 16) * 16 * 2
    assert options.num_blocks == 10**6 // per_block
    assert (options.threads, options.dtype) == (2, "bfloat16")
    assert info.max_sequences == 3
    assert info.context_len == TINY_CONTEXT
    assert info.kv_tokens == options.num_blocks * 4
    assert (info.details["num_blocks"], info.details["kv_dtype"]) == (options.num_blocks, "float32")
    assert info.details["activation_dtype"] == "float32"
    assert info.details["full_length_sequences"] == info.kv_tokens // TINY_CONTEXT
    assert progress == [1.0]


async def test_cache_has_room_for_all_sequences_when_there_is_memory(folder: Path) -> None:
    seen: list[RunnerOptions] = []
    backend = MsBackend(loader(seen))
    await backend.load(spec(folder, max_sequences=2), silent)
    await backend.unload()
    assert seen[0].num_blocks == 2 * LEAST_BLOCKS


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"num_blocks": 15}, f"set num_blocks to at least {LEAST_BLOCKS}, or leave it out"),
        ({"kv_cache_bytes": 1}, "set ms.kv_cache_mb to at least 1, or leave it out"),
    ],
)
async def test_a_small_cache_says_how_large_it_must_be(
    folder: Path, options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(Fault) as caught:
        await MsBackend(loader([])).load(spec(folder, **options), silent)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"num_blocks": 15}, FaultKind.OUT_OF_MEMORY, "15 blocks holds 240 tokens"),
        ({"kv_cache_bytes": 1}, FaultKind.OUT_OF_MEMORY, "0 blocks"),
        ({"max_sequence": 3}, FaultKind.INVALID_CONFIG, "max_sequences"),
        ({"max_sequences": 0}, FaultKind.INVALID_CONFIG, "max_sequences"),
    ],
)
async def test_options_that_cannot_work_are_refused(
    folder: Path, options: dict[str, Any], kind: FaultKind, text: str
) -> None:
    with pytest.raises(Fault, match=text) as caught:
        await MsBackend(loader([])).load(spec(folder, **options), silent)
    assert caught.value.kind is kind


async def test_shorter_context_needs_fewer_blocks(folder: Path) -> None:
    backend = MsBackend(loader([]))
    info = await backend.load(spec(folder, num_blocks=15, context_len=100), silent)
    await backend.unload()
    assert info.context_len == 100


async def test_unknown_network_needs_trust(folder: Path) -> None:
    with (folder / "telechat2.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    with pytest.raises(Fault, match=r"telechat2\.py") as caught:
        await MsBackend(loader([])).load(spec(folder), silent)
    assert caught.value.kind is FaultKind.UNTRUSTED_CODE
    assert "--trust-model-code" in caught.value.hint
    backend = MsBackend(loader([]))
    await backend.load(spec(folder, trust_model_code=True), silent)
    await backend.unload()


async def test_missing_network_is_a_broken_model(folder: Path) -> None:
    (folder / "telechat2.py").unlink()
    with pytest.raises(Fault, match="does not exist"):
        await MsBackend(loader([])).load(spec(folder), silent)


async def test_many_requests_at_once_equal_the_oracle(toy: MsBackend) -> None:
    requests = [request([number, 1, 2, 3], 12) for number in range(30)]
    answers = await asyncio.gather(*(collect(toy.generate(asked)) for asked in requests))
    assert [tokens_of(events) for events in answers] == [toy_answer(asked) for asked in requests]
    stats = await toy.stats()
    assert (stats.running, stats.waiting, stats.tokens_generated) == (0, 0, 30 * 12)


async def test_closing_the_iterator_cancels(toy: MsBackend) -> None:
    events = toy.generate(request([1, 2], 250))
    await anext(events)
    await events.aclose()  # type: ignore[attr-defined]
    await until_running(toy, 0)
    assert (await toy.stats()).kv_used_fraction == 0.0


async def test_request_that_cannot_fit_is_a_fault(toy: MsBackend) -> None:
    with pytest.raises(Fault) as caught:
        await collect(toy.generate(request([1] * 256)))
    assert caught.value.kind is FaultKind.CONTEXT_OVERFLOW


async def test_fault_of_the_engine_reaches_the_reader(folder: Path) -> None:
    runner = FakeRunner()
    runner.nan_token = 13
    backend = MsBackend(loader([], runner))
    await backend.load(spec(folder), silent)
    with pytest.raises(Fault, match="not finite"):
        await collect(backend.generate(request([13])))
    await backend.unload()
    assert runner.closed


async def test_unload_fails_what_is_in_flight_and_refuses_more(folder: Path) -> None:
    backend = MsBackend(loader([]))
    await backend.load(spec(folder), silent)
    call = asyncio.create_task(collect(backend.generate(request([1], 250))))
    await until_running(backend, 1)
    await backend.unload()
    with pytest.raises(Fault) as caught:
        await call
    assert caught.value.kind is FaultKind.NOT_READY
    with pytest.raises(Fault):
        await collect(backend.generate(request([1])))
    await backend.unload()


_BROKEN = """
from daemon.backends.ms.backend import MsBackend
from tests.fakes_engine import FakeRunner

def load(model_dir, *, options, progress):
    runner = FakeRunner(num_blocks=options.num_blocks)
    runner.error = RuntimeError("illegal instruction")
    return runner

def Backend():
    return MsBackend(load)
"""


async def test_engine_that_keeps_failing_ends_its_process(
    worker: WorkerBackend, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend(tmp_path, monkeypatch, _BROKEN)
    await worker.load(msgspec.structs.replace(spec(folder), backend="plugged"), silent)
    death = asyncio.create_task(worker.died())
    faults: list[FaultKind] = []
    while FaultKind.MODEL_CRASHED not in faults:
        with pytest.raises(Fault) as caught:
            await collect(worker.generate(request([1])))
        faults.append(caught.value.kind)
    assert faults[:2] == [FaultKind.INTERNAL, FaultKind.INTERNAL]
    assert len(faults) <= 4
    crash = await death
    assert crash is not None
    assert "exit code 70" in crash.message
    assert any("3 steps failed in a row" in line for line in worker.last_lines)


needs_mindspore = pytest.mark.skipif(
    importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed"
)


def mixed_requests() -> list[TokenRequest]:
    shared = list(range(1, 40))
    return [
        *(request([*shared, number], 12) for number in range(3)),
        request([7, 8, 9], 20, temperature=1.0, top_p=0.9, seed=5, logprobs=2),
        request([3] * 70, 8, repetition_penalty=1.3, prompt_logprobs=1),
        msgspec.structs.replace(request(shared, 10, temperature=0.8, top_k=20, seed=1), priority=-1),
    ]


def without_times(events: list[TokenEvent]) -> tuple[list[int], list[Any], list[Any]]:
    choices = [choice for event in events for choice in event.choices or ()]
    return tokens_of(events), choices, list(events[0].prompt_choices or ())


@needs_mindspore
async def test_real_model_answers_alike_alone_and_in_company(worker: WorkerBackend, folder: Path) -> None:
    await worker.load(spec(folder, max_rows=64, max_sequences=4), silent)
    alone = [without_times(await collect(worker.generate(asked))) for asked in mixed_requests()]
    together = await asyncio.gather(*(collect(worker.generate(asked)) for asked in mixed_requests()))
    assert [without_times(events) for events in together] == alone
    assert [len(tokens) for tokens, _, _ in alone] == [12, 12, 12, 20, 8, 10]
    stats = await worker.stats()
    assert stats.prefix_hit_tokens > 0
    assert stats.memory_bytes > 1 << 20


@needs_mindspore
async def test_weights_that_are_not_finite_are_refused_unless_allowed(
    worker: WorkerBackend, tmp_path: Path
) -> None:
    weights = random_weights()
    weights["lm_head.weight"][7, :3] = np.nan
    weights["transformer.h.1.mlp.up_proj.weight"][40, 5] = np.inf
    folder = write_model(tmp_path / "bad" / "1", weights)
    with pytest.raises(Fault) as caught:
        await WorkerBackend().load(spec(folder), silent)
    assert caught.value.kind is FaultKind.INVALID_MODEL
    assert "lm_head.weight in model.safetensors holds 3 infinite or NaN values" in caught.value.message
    assert "up_proj.weight in model.safetensors holds 1 infinite" in caught.value.message
    await worker.load(spec(folder, allow_nonfinite=True), silent)
    with pytest.raises(Fault, match="not finite"):
        await collect(worker.generate(request([1])))


@needs_mindspore
async def test_real_model_is_preempted_without_a_trace(worker: WorkerBackend, folder: Path) -> None:
    requests = [request([number] * 60, 60, temperature=1.0, seed=number) for number in range(6)]
    await worker.load(spec(folder, num_blocks=17, context_len=200, max_sequences=6), silent)
    alone = [tokens_of(await collect(worker.generate(asked))) for asked in requests]
    together = await asyncio.gather(*(collect(worker.generate(asked)) for asked in requests))
    assert [tokens_of(events) for events in together] == alone
    assert (await worker.stats()).preemptions > 0
