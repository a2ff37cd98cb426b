"""Requests that are far too much of something: refused in a sentence, at once, as the caller's mistake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from daemon.http_api.app import build_inference_app
from daemon.http_api.dialects.openai.completions import MOST_PROMPTS
from daemon.http_api.options import HttpOptions
from daemon.kserve.chat import MOST_MESSAGES
from daemon.listeners import HttpListener, bind
from tests.fakes import fake_service

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
AT_ONCE_S = 1.5


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    service = await fake_service(tmp_path)
    bound = bind("http_port", "127.0.0.1", 0)
    listener = HttpListener(bound, build_inference_app(service, HttpOptions()))
    await listener.start()
    async with httpx2.AsyncClient(base_url=bound.url, trust_env=False, timeout=30) as client:
        yield client
    await listener.stop()
    await service.stop(0.0)


def say(content: str = "a", count: int = 1) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}] * count, "max_tokens": 2}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (COMPLETIONS, {"prompt": ["a"] * (MOST_PROMPTS + 1)}, "may hold 2048 prompts"),
        (COMPLETIONS, {"prompt": "word " * 2_000_000}, "are at least"),
        (COMPLETIONS, {"prompt": "a", "stop_token_ids": list(range(2000))}, "at most 1024 items"),
        (COMPLETIONS, {"prompt": "a", "repetition_penalty": 1e-300}, "at least 0.001"),
        (COMPLETIONS, {"prompt": "a", "priority": 2**40}, "priority"),
        (COMPLETIONS, {f"field{number}": 1 for number in range(50_000)}, "more fields are unknown"),
        (
            COMPLETIONS,
            {"prompt": "a", **{f"{number}" * 40_000: 1 for number in range(1, 9)}},
            "unknown field",
        ),
        (CHAT, say(count=MOST_MESSAGES + 1), "may hold 8192 messages"),
        (CHAT, say("生" * 1_000_000), "are at least"),
        ("/generate", {"inputs": "a", "parameters": {"repetition_penalty": 1e300}}, "at most 1000"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
async def test_too_much(http: httpx2.AsyncClient, path: str, body: dict[str, Any], words: str) -> None:
    began = time.monotonic()
    response = await http.post(path, json=body)
    assert time.monotonic() - began < AT_ONCE_S
    assert 400 <= response.status_code < 500
    assert words in response.text
    assert len(response.text) < 4000


async def test_much_is_not_too_much(http: httpx2.AsyncClient) -> None:
    prompts = await http.post(COMPLETIONS, json={"prompt": ["a"] * 100, "max_tokens": 1})
    assert len(prompts.json()["choices"]) == 100
    stops = await http.post(COMPLETIONS, json={"prompt": "a", "stop_token_ids": list(range(7, 1000))})
    assert stops.status_code == 200
    kept = {"prompt": "word " * 200_000, "truncate_prompt_tokens": 8, "max_tokens": 1}
    assert (await http.post(COMPLETIONS, json=kept)).json()["usage"]["prompt_tokens"] == 8


async def test_an_origin_that_is_no_address_is_refused(http: httpx2.AsyncClient) -> None:
    response = await http.post(COMPLETIONS, json={"prompt": "a"}, headers={"Origin": "http://[nowhere"})
    assert response.status_code == 403


async def test_headers_end_somewhere(http: httpx2.AsyncClient) -> None:
    port = http.base_url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n")
    for _ in range(3):
        writer.write(b"X-More: and more and more\r\n" * 2000)
        await writer.drain()
        await asyncio.sleep(0.05)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    # What is long, yet not too long, and the request after it on the same connection.
    for size in (60_000, 10, 60_000):
        assert (await http.get("/health", headers={"X-Long": "x" * size})).status_code == 200
