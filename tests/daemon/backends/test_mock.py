from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.mock import MockBackend
from tests.fakes_engine import collect, mock_spec, request, silent, tokens_of, write_model


async def loaded(folder: Path, **options: Any) -> MockBackend:
    backend = MockBackend()
    await backend.load(mock_spec(folder, **{"tokens_per_s": 0, **options}), silent)
    return backend


async def test_answer_repeats_the_prompt_then_stops(tmp_path: Path) -> None:
    backend = await loaded(tmp_path)
    events = await collect(backend.generate(request([5, 6, 7], stop_token_ids=(2,))))
    assert tokens_of(events) == [5, 6, 7, 2]
    assert [event.finish for event in events] == [None, None, None, "stop"]


async def test_stop_tokens_of_the_prompt_are_not_repeated(tmp_path: Path) -> None:
    backend = await loaded(tmp_path)
    events = await collect(backend.generate(request([2, 5, 2, 6], stop_token_ids=(2,))))
    assert tokens_of(events) == [5, 6, 2]


async def test_without_stop_tokens_the_length_ends_it(tmp_path: Path) -> None:
    backend = await loaded(tmp_path)
    events = await collect(backend.generate(request([5, 6], max_tokens=5)))
    assert tokens_of(events) == [5, 6, 5, 6, 5]
    assert events[-1].finish == "length"


async def test_context_ends_the_answer(tmp_path: Path) -> None:
    backend = await loaded(write_model(tmp_path, max_seq_len=8))
    events = await collect(backend.generate(request([5, 6], max_tokens=100)))
    assert len(tokens_of(events)) == 6
    assert events[-1].finish == "length"


async def test_empty_prompt_is_answered(tmp_path: Path) -> None:
    backend = await loaded(tmp_path)
    assert tokens_of(await collect(backend.generate(request([], stop_token_ids=(2,))))) == [2]
    assert len(tokens_of(await collect(backend.generate(request([], max_tokens=3))))) == 3


async def test_min_tokens_and_answer_options(tmp_path: Path) -> None:
    backend = await loaded(tmp_path, answer_ids=[8, 9], answer_tokens=1)
    assert tokens_of(await collect(backend.generate(request([5], stop_token_ids=(2,))))) == [8, 2]
    events = await collect(backend.generate(request([5], stop_token_ids=(2,), min_tokens=3)))
    assert tokens_of(events) == [8, 9, 8, 2]


async def test_logprobs_are_consistent(tmp_path: Path) -> None:
    backend = await loaded(tmp_path)
    events = await collect(backend.generate(request([5, 6, 7], max_tokens=2, logprobs=3, prompt_logprobs=0)))
    prompt = events[0].prompt_choices
    assert prompt is not None
    assert [choice.token_id for choice in prompt] == [6, 7]
    for event in events:
        assert event.choices is not None
        (choice,) = event.choices
        assert choice.top[0] == (choice.token_id, choice.logprob)
        assert sum(math.exp(logprob) for _, logprob in choice.top) <= 1.0
        assert [t for _, t in choice.top] == sorted((t for _, t in choice.top), reverse=True)


async def test_rate_is_kept(tmp_path: Path) -> None:
    backend = await loaded(tmp_path, tokens_per_s=100.0)
    start = time.monotonic()
    await collect(backend.generate(request([1], max_tokens=10)))
    assert 0.09 <= time.monotonic() - start < 1.0


async def test_requests_beyond_the_slots_wait(tmp_path: Path) -> None:
    backend = await loaded(tmp_path, tokens_per_s=200.0, max_sequences=1)
    calls = [asyncio.create_task(collect(backend.generate(request([1], max_tokens=6)))) for _ in range(2)]
    await asyncio.sleep(0.01)
    stats = await backend.stats()
    assert (stats.running, stats.waiting) == (1, 1)
    _, second = await asyncio.gather(*calls)
    assert second[0].queue_s > 0
    stats = await backend.stats()
    assert (stats.running, stats.waiting, stats.tokens_generated) == (0, 0, 12)


async def test_closing_the_iterator_frees_the_slot(tmp_path: Path) -> None:
    backend = await loaded(tmp_path)
    events = backend.generate(request([1], max_tokens=1000))
    await anext(events)
    await events.aclose()  # type: ignore[attr-defined]
    assert (await backend.stats()).running == 0


async def test_fail_after_fails_the_request(tmp_path: Path) -> None:
    backend = await loaded(tmp_path, fail_after=2)
    events = backend.generate(request([1], max_tokens=10))
    assert [(await anext(events)).token_ids for _ in range(2)] == [[1], [1]]
    with pytest.raises(Fault, match="fail after 2 tokens"):
        await anext(events)


async def test_unload_ends_running_requests(tmp_path: Path) -> None:
    backend = await loaded(tmp_path, tokens_per_s=0.01)
    call = asyncio.create_task(collect(backend.generate(request([1]))))
    await asyncio.sleep(0)
    await backend.unload()
    with pytest.raises(Fault) as caught:
        await call
    assert caught.value.kind is FaultKind.NOT_READY


@pytest.mark.parametrize(
    ("prompt", "kind"), [([1] * 8, FaultKind.CONTEXT_OVERFLOW), ([1000], FaultKind.INVALID_REQUEST)]
)
async def test_prompts_that_cannot_be_served(tmp_path: Path, prompt: list[int], kind: FaultKind) -> None:
    backend = await loaded(write_model(tmp_path, max_seq_len=8))
    with pytest.raises(Fault) as caught:
        await collect(backend.generate(request(prompt)))
    assert caught.value.kind is kind


async def test_load_reports_progress_and_can_fail(tmp_path: Path) -> None:
    seen: list[float] = []
    await MockBackend().load(mock_spec(tmp_path, load_s=0.1), lambda fraction, _: seen.append(fraction))
    assert seen == [0.0, 0.5, 1.0]
    with pytest.raises(Fault, match="no such weights"):
        await MockBackend().load(mock_spec(tmp_path, fail_load="no such weights"), silent)


async def test_misspelt_option_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="token_per_s") as caught:
        await MockBackend().load(mock_spec(tmp_path, token_per_s=1, zzzz=2), silent)
    assert 'did you mean "tokens_per_s"?' in caught.value.message
    assert len(caught.value.details["problems"]) == 2
    with pytest.raises(Fault, match="tokens_per_s"):
        await MockBackend().load(mock_spec(tmp_path, tokens_per_s="fast"), silent)
