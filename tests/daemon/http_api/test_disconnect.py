"""A client that goes away frees its place in the engine, on every route, streaming or not."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.daemon.http_api.fake_service import FakeService

FOREVER = "!forever"
CHAT = {"messages": [{"role": "user", "content": FOREVER}]}
INFER = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [FOREVER]}]}
LONG = {"max_tokens": 100000}

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, **LONG}),
    ("/v1/chat/completions", {**CHAT, **LONG, "stream": True}),
    ("/v1/completions", {"prompt": FOREVER, **LONG}),
    ("/v1/completions", {"prompt": [FOREVER, FOREVER], **LONG}),
    ("/v1/completions", {"prompt": [FOREVER, FOREVER], **LONG, "stream": True}),
    ("/generate", {"inputs": FOREVER, "parameters": {"max_new_tokens": 100000}}),
    ("/generate", {"prompt": FOREVER, **LONG}),
    ("/generate_stream", {"inputs": FOREVER, "parameters": {"max_new_tokens": 100000}}),
    ("/v2/models/tiny/generate", {"text_input": FOREVER, **LONG}),
    ("/v2/models/tiny/generate_stream", {"text_input": FOREVER, "stream": True, **LONG}),
    ("/v2/models/tiny/infer", {**INFER, "parameters": LONG}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_closing_the_connection_cancels(
    service: FakeService, url: str, path: str, body: dict[str, Any]
) -> None:
    address = urlsplit(url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    await _until(lambda: bool(service.requests))
    assert not service.closed.is_set()
    writer.close()
    await _until(service.closed.is_set)


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        await asyncio.sleep(0.005)
