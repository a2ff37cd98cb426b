"""The HTTP front over the real service with fake engines, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from daemon.http_api.app import build_inference_app
from daemon.http_api.options import HttpOptions
from daemon.listeners import HttpListener, bind
from daemon.service.daemon_service import DaemonService
from tests.fakes import FakeBackends, fake_service, until

MODELS = ("crashing", "echo", "failing", "slow")
CHAT = "/v1/chat/completions"


@pytest.fixture
def backends() -> FakeBackends:
    return FakeBackends()


@pytest.fixture
async def service(tmp_path: Path, backends: FakeBackends) -> AsyncIterator[DaemonService]:
    service = await fake_service(tmp_path, MODELS, backends=backends)
    yield service
    await service.stop(0.0)


@pytest.fixture
async def http(service: DaemonService) -> AsyncIterator[httpx2.AsyncClient]:
    bound = bind("http_port", "127.0.0.1", 0)
    listener = HttpListener(bound, build_inference_app(service, HttpOptions()))
    await listener.start()
    async with httpx2.AsyncClient(base_url=bound.url, trust_env=False, timeout=10) as client:
        yield client
    await listener.stop()
    bound.sock.close()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "生抽与老抽"}], **more}


async def test_a_chat_is_rendered_and_answered(http: httpx2.AsyncClient) -> None:
    answer = (await http.post(CHAT, json=chat("echo", max_tokens=64))).json()
    assert "生抽与老抽" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["total_tokens"] > 0


async def test_every_dialect_gives_the_same_text(http: httpx2.AsyncClient) -> None:
    text = "light soy sauce 生抽"
    model = {"X-Model": "echo"}
    mindie = await http.post("/generate", json={"inputs": text}, headers=model)
    vllm = await http.post("/generate", json={"prompt": text, "model": "echo", "max_tokens": 20})
    openai = await http.post("/v1/completions", json={"model": "echo", "prompt": text, "max_tokens": 20})
    triton = await http.post("/v2/models/echo/generate", json={"text_input": text, "max_tokens": 20})
    answer = mindie.json()["generated_text"]
    assert answer
    assert openai.json()["choices"][0]["text"] == answer
    assert vllm.json()["text"] == [f"{text} {answer}"]
    assert triton.json()["text_output"] == text + answer


async def test_no_model_named_among_several(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/generate", json={"inputs": "a"})
    assert answer.status_code in (404, 422)
    assert "echo" in answer.json()["error"]


@pytest.mark.parametrize(("model", "code"), [("failing", "out_of_memory"), ("crashing", "model_crashed")])
async def test_an_engines_fault_reaches_the_client(http: httpx2.AsyncClient, model: str, code: str) -> None:
    answer = await http.post(CHAT, json=chat(model))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_reaches_the_engine(
    http: httpx2.AsyncClient, backends: FakeBackends, stream: bool
) -> None:
    engine = backends.last("slow")
    call = asyncio.create_task(http.post(CHAT, json=chat("slow", stream=stream)))
    await until(lambda: engine.running == 1)
    call.cancel()
    await until(lambda: engine.running == 0)
    assert len(engine.closed) == 1


async def test_the_same_id_twice_at_once(http: httpx2.AsyncClient) -> None:
    headers = {"X-Request-ID": "same"}
    calls = [http.post(CHAT, json=chat("echo", max_tokens=64), headers=headers) for _ in range(4)]
    answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * 4
