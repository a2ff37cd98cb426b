"""huggingface_hub's client, unmodified, against the TGI flavour and the OpenAI dialect."""

from __future__ import annotations

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import InferenceClient

from tests.daemon.http_api.conftest import Serve


@pytest.fixture
def tgi_url(serve: Serve) -> str:
    return serve(generate_flavour="tgi")


@pytest.fixture
def client(tgi_url: str) -> InferenceClient:
    return InferenceClient(model=tgi_url, timeout=10)


def test_text_generation(client: InferenceClient) -> None:
    assert client.text_generation("a b", max_new_tokens=5) == "b a"


def test_details(client: InferenceClient) -> None:
    answer = client.text_generation("a b", details=True, decoder_input_details=True)
    assert answer.generated_text == "b a"
    assert answer.details is not None
    assert answer.details.finish_reason == "eos_token"
    assert [token.id for token in answer.details.prefill] == [107, 140]
    assert [token.logprob for token in answer.details.prefill] == [None, -0.5]
    assert [(token.text, token.logprob) for token in answer.details.tokens] == [("b", -0.5), (" a", -0.5)]


def test_stream(client: InferenceClient) -> None:
    assert list(client.text_generation("a b", stream=True)) == ["b", " a", ""]


def test_stream_with_details(client: InferenceClient) -> None:
    *parts, last = client.text_generation("a b", stream=True, details=True)
    assert [part.index for part in parts] == [1, 2]
    assert [part.token.logprob for part in parts] == [-0.5, -0.5]
    assert last.token.special
    assert last.generated_text == "b a"
    assert last.details is not None
    assert last.details.finish_reason == "eos_token"


def test_rivals(tgi_url: str) -> None:
    body = {"inputs": "a b", "parameters": {"details": True, "top_n_tokens": 2}}
    details = httpx2.post(f"{tgi_url}/generate", json=body).json()["details"]
    assert [rival["text"] for rival in details["top_tokens"][0]] == ["b", "b1"]


def test_errors(client: InferenceClient, tgi_url: str) -> None:
    with pytest.raises(huggingface_hub.errors.ValidationError):
        client.text_generation("a", temperature=-1.0)
    with pytest.raises(huggingface_hub.errors.OverloadedError):
        client.text_generation("!overloaded")
    answer = httpx2.post(f"{tgi_url}/generate", json={"inputs": 5})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_chat_completion(tgi_url: str) -> None:
    client = InferenceClient(base_url=f"{tgi_url}/v1", timeout=10)
    messages = [{"role": "user", "content": "a b"}]
    assert client.chat_completion(messages, max_tokens=9).choices[0].message.content == "b a"
    chunks = client.chat_completion(messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "b a"


def test_the_clients_placeholder_is_a_model_where_one_has_its_name(url: str) -> None:
    body = {"model": "dummy", "messages": [{"role": "user", "content": "a"}]}
    assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 404


def test_info(tgi_url: str) -> None:
    info = httpx2.get(f"{tgi_url}/info").json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("tiny", 64, 63)
