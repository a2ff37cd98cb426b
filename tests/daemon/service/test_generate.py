"""The path of a request over fake engines: prompts, limits, answers and exactly one end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.faults import FaultKind
from contract.generation import (
    Delta,
    Finished,
    Started,
)
from daemon.backends.base import TokenEvent
from daemon.service.tokenizer import TextTokenizer
from tests.daemon.service.asking import answer, collect, fault_of
from tests.fakes import (
    BOS_ID,
    CONTROL_TOKENS,
    END_ID,
    FakeBackends,
    ScriptedBackend,
    byte_level_tokenizer,
    fake_service,
    request_of,
    sentencepiece_tokenizer,
    user,
    write_model,
)

TOKENIZER = TextTokenizer(byte_level_tokenizer())


async def test_a_raw_prompt_comes_back(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    events = await collect(service, request_of("Hello 生抽 <_bot>"))
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert started.prompt_token_ids[-1] == CONTROL_TOKENS.index("<_bot>")
    deltas = [event for event in events if isinstance(event, Delta)]
    assert "".join(delta.text for delta in deltas) == "Hello 生抽 "
    assert [one for delta in deltas for one in delta.token_ids] == [*started.prompt_token_ids, END_ID]
    assert (deltas[-1].finish_reason, deltas[-1].stop_match) == ("stop", None)
    assert finished.usage.completion_tokens == finished.usage.prompt_tokens + 1
    await service.stop(1)


async def test_special_tokens_are_kept_when_asked(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    text, _ = await answer(service, request_of("a<_bot>", skip_special_tokens=False))
    assert text == "a<_bot><_end>"
    await service.stop(1)


async def test_a_chat_is_rendered(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    events = await collect(service, request_of(messages=user("hi <_end>")))
    started = events[0]
    assert isinstance(started, Started)
    assert started.prompt_text == "<_user>hi <_end><_bot>"
    assert END_ID not in started.prompt_token_ids
    await service.stop(1)


async def test_bos_is_added_once(tmp_path: Path) -> None:
    prompt = {"prompt": {"chat_template": None, "add_bos": True}}
    write_model(tmp_path, "m", serving=prompt, tokenizer=sentencepiece_tokenizer(), template=None)
    service = await fake_service(tmp_path, ())
    assert (await service.tokenize("m", "hi"))[:1] == [BOS_ID]
    assert (await service.tokenize("m", "<_start>hi")).count(BOS_ID) == 1
    fault = await fault_of(service, request_of(messages=user("hi")))
    assert fault.kind is FaultKind.UNSUPPORTED
    assert "or package a chat template" in fault.hint
    await service.stop(1)


async def test_truncation_keeps_the_end(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    started = (await collect(service, request_of("a b c d", truncate_prompt=2)))[0]
    assert isinstance(started, Started)
    assert started.prompt_token_ids == TOKENIZER.encode_now("a b c d")[-2:]
    await service.stop(1)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"token_ids": [1, 99999]}, FaultKind.INVALID_REQUEST, "token id 99999 is outside"),
        ({"token_ids": []}, FaultKind.INVALID_REQUEST, "empty"),
        ({"text": "x", "token_ids": [1]}, FaultKind.INVALID_REQUEST, "exactly one"),
        ({"token_ids": [1] * 257}, FaultKind.CONTEXT_OVERFLOW, "257 tokens; the model takes at most 256"),
        ({"text": "x", "n": 0}, FaultKind.INVALID_REQUEST, "n must be"),
        ({"text": "x", "model": "nope"}, FaultKind.NOT_FOUND, "unknown model: 'nope'"),
        ({"text": "x", "model": "echo@9"}, FaultKind.NOT_FOUND, "version 9 is not found"),
        ({"text": "x", "sampling": {"temperature": -1.0}}, FaultKind.INVALID_REQUEST, "temperature"),
        ({"text": "half \ud800"}, FaultKind.INVALID_REQUEST, "surrogate"),
        ({"messages": user("half \ud800")}, FaultKind.INVALID_REQUEST, "surrogate"),
        ({"messages": user(""), "template_options": {"messages": 1}}, None, ""),
    ],
)
async def test_refusals(tmp_path: Path, fields: dict[str, Any], kind: FaultKind | None, words: str) -> None:
    service = await fake_service(tmp_path)
    if kind is None:
        await collect(service, request_of(**fields))
    else:
        fault = await fault_of(service, request_of(**fields))
        assert (fault.kind, words in fault.message) == (kind, True)
    await service.stop(1)


async def test_lengths(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    ids = [50] * 200
    forever = {"ignore_eos": True}

    async def length(**fields: Any) -> int:
        events = await collect(service, request_of(token_ids=ids, **fields))
        assert isinstance(events[-1], Finished)
        return events[-1].usage.completion_tokens

    assert await length(sampling=forever) == 512 - 200
    assert await length(sampling=forever, default_max_tokens=20) == 20
    assert await length(sampling={**forever, "max_tokens": 7}) == 7
    assert await length(sampling={**forever, "max_tokens": 1000}) == 312
    assert await length(sampling={"max_tokens": 0}) == 0
    refused = request_of(token_ids=ids, dialect="openai", sampling={"max_tokens": 313})
    fault = await fault_of(service, refused)
    assert fault.kind is FaultKind.CONTEXT_OVERFLOW
    assert "at most 312" in fault.hint
    await service.stop(1)


async def test_stop_strings(tmp_path: Path) -> None:
    backends = FakeBackends()
    service = await fake_service(tmp_path, backends=backends)
    text, last = await answer(service, request_of("one two three", sampling={"stop": ("two",)}))
    assert (text, last.finish_reason, last.stop_match) == ("one ", "stop_string", "two")
    await backends.last("echo").idle()
    assert backends.last("echo").closed == ["r1"]
    sampling = {"stop": ("two",), "include_stop": True}
    assert (await answer(service, request_of("one two three", sampling=sampling)))[0] == "one two"
    sampling = {"stop": ("one",), "min_tokens": 5}
    assert (await answer(service, request_of("one one one one", sampling=sampling)))[0].count("one") >= 1
    await service.stop(1)


async def test_stop_ids(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    stop = TOKENIZER.encode_now("!")[0]
    text, last = await answer(service, request_of("hey! you", sampling={"stop_token_ids": (stop,)}))
    assert (text, last.stop_match, last.finish_reason) == ("hey", stop, "stop")
    sampling = {"stop_token_ids": (stop,), "include_stop": True}
    assert (await answer(service, request_of("hey! you", sampling=sampling)))[0] == "hey!"
    await service.stop(1)


async def test_several_tokens_in_one_event(tmp_path: Path) -> None:
    ids = TOKENIZER.encode_now("one two three four")
    backends = FakeBackends({"echo": lambda: ScriptedBackend([TokenEvent(ids, finish="length")])})
    service = await fake_service(tmp_path, backends=backends)
    text, last = await answer(service, request_of("x", sampling={"stop": ("two",)}))
    assert text == "one "
    assert TOKENIZER.decode_now(last.token_ids, skip_special_tokens=True).startswith("one two")
    assert len(last.token_ids) < len(ids)
    await service.stop(1)


async def test_logprobs_align_with_tokens(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    request = request_of("生抽 x", sampling={"logprobs": 2, "prompt_logprobs": 1})
    events = await collect(service, request)
    started = events[0]
    assert isinstance(started, Started)
    assert started.prompt_logprobs is not None
    assert [one.token_id for one in started.prompt_logprobs] == started.prompt_token_ids
    assert started.prompt_logprobs[0].logprob is None
    for delta in events[1:-1]:
        assert isinstance(delta, Delta)
        assert [one.token_id for one in delta.logprobs or []] == delta.token_ids
        assert all(len(one.top) == 2 for one in delta.logprobs or [])
    await service.stop(1)


async def test_prompt_logprobs_precede_all_answers(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    events = await collect(service, request_of("hello", n=3, sampling={"prompt_logprobs": 0}))
    assert isinstance(events[0], Started)
    assert events[0].prompt_logprobs is not None
    assert len({event.index for event in events if isinstance(event, Delta)}) == 3
    await service.stop(1)


async def test_n_answers_have_their_own_seed(tmp_path: Path) -> None:
    backends = FakeBackends()
    service = await fake_service(tmp_path, backends=backends)
    events = await collect(service, request_of("hello", n=3, sampling={"seed": 5}))
    for index in range(3):
        deltas = [event for event in events if isinstance(event, Delta) and event.index == index]
        assert "".join(delta.text for delta in deltas) == "hello"
        assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    made = backends.last("echo").requests
    assert sorted((one.request_id, one.sampling.seed) for one in made) == [
        ("r1", 5),
        ("r1-1", 6),
        ("r1-2", 7),
    ]
    await service.stop(1)
