"""One set of requests in every dialect's words becomes the same generate request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from contract.generation import GenerateRequest, Message, Sampling
from contract.tensors import number_tensor, string_tensor
from daemon.http_api.dialects import mindie_body, vllm
from daemon.http_api.dialects.openai import chat, completions
from daemon.http_api.options import HttpOptions
from daemon.kserve import request as kserve

PROMPT = "生抽与老抽的区别？"
SAMPLINGS: dict[str, Sampling] = {
    "defaults": Sampling(),
    "sampled": Sampling(max_tokens=9, temperature=0.5, top_k=40, top_p=0.9, seed=7),
    "penalised": Sampling(max_tokens=3, repetition_penalty=1.5),
    "stopped": Sampling(stop=("。", "\n")),
}

_NAMES = ("max_tokens", "temperature", "top_k", "top_p", "seed", "repetition_penalty", "stop")


def words(sampling: Sampling, **renamed: str) -> dict[str, Any]:
    """The fields that are set, under a dialect's names."""
    given = msgspec.json.decode(msgspec.json.encode(sampling))
    return {renamed.get(name, name): given[name] for name in _NAMES if name in given}


def expected(sampling: Sampling, dialect: str, default_max_tokens: int | None) -> GenerateRequest:
    return GenerateRequest(
        request_id="r",
        dialect=dialect,
        model="tiny",
        text=PROMPT,
        sampling=sampling,
        default_max_tokens=default_max_tokens,
    )


@pytest.fixture(params=list(SAMPLINGS))
def sampling(request: pytest.FixtureRequest) -> Sampling:
    return SAMPLINGS[request.param]


def test_mindie(sampling: Sampling) -> None:
    body = {"inputs": PROMPT, "parameters": words(sampling, max_tokens="max_new_tokens")}
    parsed = mindie_body.parse(body, "r", "tiny", "mindie", stream=None)
    assert parsed.request == expected(sampling, "mindie", 20)
    assert mindie_body.parse(body, "r", "tiny", "tgi", stream=None).request == expected(sampling, "tgi", 20)


def test_vllm(sampling: Sampling) -> None:
    parsed, stream = vllm.parse({"prompt": PROMPT, **words(sampling)}, "r", "tiny")
    assert parsed == expected(sampling, "vllm", 16)
    assert not stream


def test_completions(sampling: Sampling) -> None:
    body = {"model": "tiny", "prompt": PROMPT, **words(sampling)}
    (parsed,) = completions.parse(body, "r", HttpOptions()).requests
    assert parsed == expected(sampling, "openai", 16)


def test_chat(sampling: Sampling) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], **words(sampling)}
    wanted = expected(sampling, "openai", None)
    wanted.text, wanted.messages = None, [Message("user", PROMPT)]
    assert chat.parse(body, "r", HttpOptions())[1] == wanted


def test_triton(sampling: Sampling) -> None:
    wanted = expected(sampling, "triton", 16)
    target = kserve.Target("tiny", "", "r")
    given = words(sampling)
    as_json = msgspec.json.encode(given).decode()
    text = string_tensor("text_input", [PROMPT])
    forms: list[GenerateRequest] = [
        kserve.parse_values(target, {"text_input": PROMPT, **given}).request,
        kserve.parse_values(target, {"text_input": PROMPT, "sampling_parameters": given}).request,
        kserve.parse_values(target, {"text_input": PROMPT, "sampling_parameters": as_json}).request,
        kserve.parse_values(target, {"text_input": PROMPT, **_as_strings(given)}).request,
        kserve.parse(target, {"text_input": text}, given).request,
        kserve.parse(target, {"text_input": text, **_as_tensors(given)}, {}).request,
    ]
    assert all(form == wanted for form in forms)


def _as_strings(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, list) else str(value) for name, value in given.items()}


def _as_tensors(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: string_tensor(name, value)
        if isinstance(value, list)
        else number_tensor(name, "FP64" if isinstance(value, float) else "INT64", [value])
        for name, value in given.items()
    }
