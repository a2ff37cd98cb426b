"""Ports are bound before anything else; a clash names the setting."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest

from contract.faults import Fault, FaultKind
from daemon.listeners import HttpListener, bind


async def hello(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def test_a_free_port_is_reported_and_served() -> None:
    bound = bind("http_port", "127.0.0.1", 0)
    listener = HttpListener(bound, hello)
    await listener.start()
    try:
        async with httpx2.AsyncClient() as http:
            assert (await http.get(bound.url)).text == "hello"
    finally:
        await listener.stop()
    with pytest.raises(httpx2.ConnectError):
        async with httpx2.AsyncClient() as http:
            await http.get(bound.url)


def test_a_taken_port_names_the_setting() -> None:
    first = bind("http_port", "127.0.0.1", 0)
    try:
        with pytest.raises(Fault, match="http_port: cannot listen on 127") as caught:
            bind("http_port", "127.0.0.1", first.port)
        assert caught.value.kind is FaultKind.START_FAILED
        assert "--http-port" in caught.value.hint
    finally:
        first.sock.close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(Fault, match="cannot listen on 192"):
        bind("http_port", "192.0.2.1", 0)


async def test_answers_on_a_used_connection_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm against delayed acknowledgements would cost 40 ms each."""
    bound = bind("http_port", "127.0.0.1", 0)
    listener = HttpListener(bound, hello)
    await listener.start()
    try:
        async with httpx2.AsyncClient(base_url=bound.url) as http:
            began = time.monotonic()
            for _ in range(25):
                await http.post("/", content=b"x" * 100)
            assert time.monotonic() - began < 25 * 0.03
    finally:
        await listener.stop()
