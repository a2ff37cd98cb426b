"""MindIE's and vLLM's generate endpoints, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from daemon.http_api.dialects import mindie_body, vllm
from tests.daemon.http_api.fake_service import FakeService


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(part.removeprefix("data: ")) for part in text.strip().split("\n\n")]


def test_the_documented_request(http: httpx2.Client, service: FakeService) -> None:
    body = (
        '{"inputs": "生抽 老抽", "parameters": {"do_sample": false, "max_new_tokens": 512}, "stream": false}'
    )
    answer = http.post("/generate", content=body.encode())
    assert answer.text == '{"generated_text":"老抽 生抽"}'
    assert answer.headers["content-type"] == "application/json"
    request = service.requests[0]
    assert (request.text, request.sampling.do_sample, request.sampling.max_tokens) == (
        "生抽 老抽",
        False,
        512,
    )
    assert (request.default_max_tokens, request.skip_special_tokens) == (20, True)


def test_details(http: httpx2.Client) -> None:
    asked = {"details": True, "decoder_input_details": True, "seed": 3}
    details = http.post("/generate", json={"inputs": "a b", "parameters": asked}).json()["details"]
    blank = {"logprob": None, "special": None, "text": None}
    assert details["prefill"] == [{"id": 107, **blank}, {"id": 108, **blank}]
    assert [token["id"] for token in details["tokens"]] == [108, 139, 2]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("eos_token", 3, 3)
    assert details["prompt_tokens"] == 2


def test_stream(http: httpx2.Client) -> None:
    answer = http.post("/generate_stream", json={"inputs": "a b", "parameters": {"details": True}})
    assert answer.text.startswith(
        'data: {"token":{"id":108,"text":"b","logprob":null,"special":null},'
        '"generated_text":null,"details":null}\n\n'
    )
    *_, last = events(answer.text)
    assert last["generated_text"] == "b a"
    assert last["details"]["finish_reason"] == "eos_token"
    assert (
        answer.text
        == http.post(
            "/generate", json={"inputs": "a b", "stream": True, "parameters": {"details": True}}
        ).text
    )


def test_length_and_full_text(http: httpx2.Client) -> None:
    asked = {"max_new_tokens": 1, "return_full_text": True, "details": True}
    answer = http.post("/generate", json={"inputs": "a b", "parameters": asked}).json()
    assert answer["generated_text"] == "a bb"
    assert answer["details"]["finish_reason"] == "length"


def test_root_answers_in_an_array(http: httpx2.Client) -> None:
    assert http.post("/", json={"inputs": "a b"}).json() == [{"generated_text": "b a"}]
    assert "data: " in http.post("/", json={"inputs": "a b", "stream": True}).text


def test_header_and_adapter_choose_the_model(http: httpx2.Client, service: FakeService) -> None:
    http.post("/generate", json={"inputs": "a"}, headers={"X-Model": "tiny@1"})
    http.post("/generate", json={"inputs": "a", "parameters": {"adapter_id": "poet"}})
    assert [request.model for request in service.requests] == ["tiny@1", "poet"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": ""}, "inputs"),
        ({"inputs": "a", "parameters": {"temperature": 0}}, "parameters.temperature"),
        ({"inputs": "a", "parameters": {"top_p": 1.5}}, "parameters.top_p"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"inputs": "a", "parameters": {"max_new_tokens": "5"}}, "parameters.max_new_tokens"),
        ({"inputs": "a", "parameters": {"max_new_tokens": True}}, "parameters.max_new_tokens"),
        ({"inputs": "a", "parameters": {"seed": -1}}, "parameters.seed"),
        ({"inputs": "a", "parameters": {"stop": [""]}}, "parameters.stop"),
        ({"inputs": "a", "parameters": {"watermark": True}}, "'parameters.watermark' is not supported"),
        ({"inputs": "a", "parameters": {"typical_p": 0.5}}, "'parameters.typical_p' is not supported"),
        ({"inputs": "a", "parameters": {"max_new_token": 5}}, "did you mean 'max_new_tokens'?"),
        ({"inputs": "a", "parameter": {}}, "did you mean 'parameters'?"),
        ({"inputs": "a", "stream": True, "parameters": {"decoder_input_details": True}}, "streamed"),
        ({"inputs": "a", "prompt": "b"}, "'inputs' and 'prompt' exclude each other"),
        ({"messages": []}, "/v1/chat/completions"),
        ({}, "neither 'inputs' nor 'prompt'"),
    ],
)
def test_a_clients_mistake_is_422(http: httpx2.Client, body: dict[str, Any], words: str) -> None:
    answer = http.post("/generate", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert answer.json()["error_type"] == "Input Validation Error"


def test_neutral_values_of_unsupported_fields_pass(http: httpx2.Client) -> None:
    neutral = {"watermark": False, "typical_p": 1.0, "best_of": 1, "top_p": None}
    assert http.post("/generate", json={"inputs": "a", "parameters": neutral}).status_code == 200


def test_all_problems_are_named_at_once(http: httpx2.Client) -> None:
    wrong = {"temperature": -1, "topk": 5, "seed": "x"}
    text = http.post("/generate", json={"inputs": "a", "parameters": wrong}).json()["error"]
    assert all(name in text for name in ("parameters.temperature", "parameters.topk", "parameters.seed"))


@pytest.mark.parametrize(
    ("order", "status", "error_type"),
    [
        ("!overloaded", 429, "Too Many Requests"),
        ("!not_ready", 503, "Service Unavailable"),
        ("!not_found", 404, "NotFoundError"),
        ("!context_overflow", 424, "Generation Error"),
        ("!internal", 500, "Incomplete Generation"),
    ],
)
def test_faults(http: httpx2.Client, order: str, status: int, error_type: str) -> None:
    for path in ("/generate", "/generate_stream"):
        answer = http.post(path, json={"inputs": order})
        assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)
        assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_fault_in_mid_stream_is_an_event(http: httpx2.Client) -> None:
    answer = http.post("/generate_stream", json={"inputs": "!after timeout x y"})
    assert answer.status_code == 200
    assert events(answer.text)[-1] == {"error": "it broke", "error_type": "Request Timeout"}


def test_vllm(http: httpx2.Client, service: FakeService) -> None:
    answer = http.post("/generate", json={"prompt": "a b", "n": 2, "top_k": -1, "temperature": 0})
    assert answer.json() == {"text": ["a b b a", "a b b a"]}
    assert service.requests[0].default_max_tokens == vllm.DEFAULT_MAX_TOKENS == 16
    streamed = http.post("/generate", json={"prompt": "a b", "stream": True}).content
    assert streamed.split(b"\0")[0] == b'{"text":["a b b"]}'
    assert streamed.endswith(b'{"text":["a b b a"]}\0')


def test_text_after_the_last_token_is_kept() -> None:
    from contract.generation import Delta
    from daemon.http_api.dialects.mindie_format import MindieFormat

    form = MindieFormat(mindie_body.parse({"inputs": "a"}, "1", None, "mindie", stream=True))
    two = form.events(Delta("b c", [7, 8]))
    assert [(event["token"]["id"], event["token"]["text"]) for event in two] == [(7, ""), (8, "b c")]
    (held,) = form.events(Delta(" d", [], finish_reason="stop_string"))
    assert held["token"] == {"id": 8, "text": " d", "logprob": None, "special": None}
    assert held["generated_text"] == "b c d"
