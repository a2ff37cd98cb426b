"""The generate extension and the edges of infer, byte for byte."""

from __future__ import annotations

import gzip
import json

import httpx2
import pytest

from tests.daemon.http_api.fake_service import FakeService

GENERATE = "/v2/models/tiny/generate"
STREAM = "/v2/models/tiny/generate_stream"
INFER = "/v2/models/tiny/infer"


def tensor(text: str = "a b") -> dict[str, object]:
    return {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [text]}


def test_generate(http: httpx2.Client) -> None:
    answer = http.post(GENERATE, json={"text_input": "a b", "id": "7", "parameters": {"max_tokens": 5}})
    assert answer.json() == {"model_name": "tiny", "model_version": "2", "id": "7", "text_output": "a bb a"}


def test_generate_without_the_input(http: httpx2.Client) -> None:
    asked = {"text_input": ["a b"], "exclude_input_in_output": [True], "return_finish_reason": True}
    answer = http.post("/v2/models/tiny/versions/1/generate", json=asked).json()
    assert answer["text_output"] == "b a"
    assert answer["finish_reason"] == "stop"
    assert answer["model_version"] == "1"


def test_several_answers_are_an_array(http: httpx2.Client) -> None:
    answer = http.post(GENERATE, json={"text_input": "a", "sampling_parameters": {"n": 2}}).json()
    assert answer["text_output"] == ["aa", "aa"]


def test_messages_are_a_chat(http: httpx2.Client, service: FakeService) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]
    answer = http.post(GENERATE, json={"messages": messages}).json()
    assert answer["text_output"] == "b a"
    http.post(GENERATE, json={"messages": json.dumps(messages)})
    assert service.requests[0].messages == service.requests[1].messages


def test_stream(http: httpx2.Client) -> None:
    answer = http.post(STREAM, json={"text_input": "a b", "stream": True, "return_finish_reason": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [json.loads(part.removeprefix("data: ")) for part in answer.text.strip().split("\n\n")]
    assert [event["text_output"] for event in events] == ["b", " a", ""]
    assert [event["finish_reason"] for event in events] == ["None", "None", "stop"]
    assert "[DONE]" not in answer.text


def test_stream_of_one_whole_answer(http: httpx2.Client) -> None:
    answer = http.post(STREAM, json={"text_input": "a b"})
    assert answer.text == 'data: {"model_name":"tiny","model_version":"2","text_output":"a bb a"}\n\n'


def test_generate_refuses_to_stream(http: httpx2.Client) -> None:
    answer = http.post(GENERATE, json={"text_input": "a", "stream": True})
    assert answer.status_code == 400
    assert "generate expects model to produce exactly 1 response" in answer.json()["error"]


def test_stream_errors(http: httpx2.Client) -> None:
    early = http.post(STREAM, json={"text_input": "!overloaded"})
    assert (early.status_code, early.headers["content-type"]) == (429, "application/json")
    begun = http.post(STREAM, json={"text_input": "!after model_crashed x y"})
    assert begun.status_code == 503
    assert begun.headers["content-type"].startswith("text/event-stream")
    assert begun.text == 'data: {"error":"it broke"}\n\n'
    late = http.post(STREAM, json={"text_input": "!after model_crashed x y", "stream": True})
    assert late.status_code == 200
    assert late.text.endswith('data: {"error":"it broke"}\n\n')


def test_streaming_cannot_repeat_the_input(http: httpx2.Client) -> None:
    answer = http.post(STREAM, json={"text_input": "a", "stream": True, "exclude_input_in_output": False})
    assert "`exclude_input_in_output` = False is not allowed" in answer.json()["error"]


def test_cancel_by_id(http: httpx2.Client) -> None:
    assert http.post("/v2/models/tiny/stopInfer", json={"id": "running"}).status_code == 200
    assert http.post("/v2/models/tiny/stopInfer", json={"id": "absent"}).status_code == 404
    assert http.post("/v2/models/tiny/stopInfer", json={}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"inputs": 5}',
        b"{}",
        json.dumps({"inputs": [tensor(), tensor()]}).encode(),
        json.dumps({"inputs": [{**tensor(), "shape": [2]}]}).encode(),
        json.dumps({"inputs": [{**tensor(), "datatype": "TEXT"}]}).encode(),
        json.dumps({"inputs": [{**tensor(), "data": [1]}]}).encode(),
        json.dumps({"inputs": [tensor()], "input": []}).encode(),
        json.dumps({"inputs": [tensor()], "parameters": {"temprature": 1}}).encode(),
        json.dumps({"id": 5, "inputs": [tensor()]}).encode(),
    ],
)
def test_a_clients_mistake_is_400(http: httpx2.Client, body: bytes) -> None:
    answer = http.post(INFER, content=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]


def test_bad_header_length_and_encoding(http: httpx2.Client) -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    long = http.post(INFER, content=body, headers={"Inference-Header-Content-Length": "9999"})
    assert long.status_code == 400
    assert http.post(INFER, content=body, headers={"Content-Encoding": "br"}).status_code == 501
    assert http.post(INFER, content=b"junk", headers={"Content-Encoding": "gzip"}).status_code == 400
    cut = gzip.compress(body)[:-9]
    assert http.post(INFER, content=cut, headers={"Content-Encoding": "gzip"}).status_code == 400


def test_raw_binary_request(http: httpx2.Client) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    answer = http.post(INFER, content="生 抽".encode(), headers=headers)
    head = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.content[head + 4 :].decode() == "生 抽抽 生"


def test_routes_and_methods(http: httpx2.Client) -> None:
    assert http.get("/v2/").json() == http.get("/v2").json()
    assert http.head("/v2/health/ready").status_code == 200
    assert http.get("/v2/models/tiny/versions/x/config").status_code == 404
    wrong = http.get(INFER)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "Method Not Allowed" in wrong.json()["error"]
