"""A fake service behind real sockets on loopback, one server a test, in its own thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.http_api.app import build_inference_app, build_management_app
from daemon.http_api.options import HttpOptions
from tests.daemon.http_api.fake_service import FakeService

Serve = Callable[..., str]


class Control:
    def __init__(self) -> None:
        self.stops: list[bool] = []

    async def engines(self) -> dict[tuple[str, str], Any]:
        return {("tiny", "2"): {"running": 2}}

    def status(self) -> dict[str, Any]:
        return {"version": "9.9", "pid": 1}

    def stop(self, *, drain: bool) -> None:
        self.stops.append(drain)


class Server:
    """A listening server whose application can be exchanged: starting one takes longer than most tests."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._serve, interface="asgi3", lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.002)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._listener]))


class Pool:
    """Servers by the order a test needs them in."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self._used = 0

    def serve(self, app: ASGIApp) -> str:
        if self._used == len(self.servers):
            self.servers.append(Server())
        server = self.servers[self._used]
        self._used += 1
        server.app = app
        return server.url

    def release(self) -> None:
        self._used = 0


@pytest.fixture(scope="session")
def servers() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    for server in pool.servers:
        server.stop()


@pytest.fixture
def pool(servers: Pool) -> Iterator[Pool]:
    yield servers
    servers.release()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def serve(service: FakeService, pool: Pool) -> Serve:
    """Serve the inference application with options."""
    return lambda **options: pool.serve(build_inference_app(service, HttpOptions(**options)))


@pytest.fixture
def url(serve: Serve) -> str:
    return serve()


@pytest.fixture
def management_url(service: FakeService, control: Control, pool: Pool) -> str:
    return pool.serve(build_management_app(service, HttpOptions(version="9.9"), control))


@pytest.fixture
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=10, trust_env=False) as client:
        yield client
