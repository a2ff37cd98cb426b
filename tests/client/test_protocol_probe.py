"""A port that speaks something else is told with the address that would be right."""

from __future__ import annotations

import asyncio

import pytest

from client import Client, ConnectError, InvalidRequestError
from client.address import parse_address
from client.protocol_probe import wrong_protocol
from tests.daemon.grpc_api.running import RunningDaemon


@pytest.mark.parametrize(
    ("scheme", "spoken"),
    [("http", "grpc"), ("https", "grpc"), ("https", "http"), ("grpc", "http"), ("grpcs", "http")],
)
def test_the_wrong_port_names_the_right_scheme(daemon: RunningDaemon, scheme: str, spoken: str) -> None:
    target = daemon.grpc_address if spoken == "grpc" else daemon.http_url.removeprefix("http://")
    with Client(f"{scheme}://{target}") as client, pytest.raises(InvalidRequestError) as caught:
        client.health()
    assert f"{scheme}://{target} is the wrong address" in caught.value.message
    assert f"{spoken}://{target}" in caught.value.hint


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_right_port_is_not_suspected(daemon: RunningDaemon, scheme: str) -> None:
    target = daemon.grpc_address if scheme == "grpc" else daemon.http_url.removeprefix("http://")
    assert asyncio.run(wrong_protocol(parse_address(f"{scheme}://{target}"))) is None


async def served(answer: bytes) -> str:
    """What is told of a port that says this, asked over plain HTTP."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        fault = await wrong_protocol(parse_address(f"http://127.0.0.1:{port}"))
    return fault.hint if fault else ""


async def test_what_else_a_port_may_say() -> None:
    assert "https://" in await served(bytes((0x15, 3, 1, 0, 2, 2, 40)))
    for nothing in (b"", b"SSH-2.0-x\r\n", b"220 mail\r\n"):
        assert await served(nothing) == ""


def test_nobody_there_stays_that() -> None:
    with Client("https://127.0.0.1:9") as client, pytest.raises(ConnectError, match="no server answers"):
        client.health()
