"""A real service over fake engines behind real ports on loopback, on a thread of its own.

So that blocking clients can be tested as their users run them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from daemon.grpc_api.options import GrpcOptions
from daemon.grpc_api.server import GrpcServer, start_grpc
from daemon.http_api.app import build_inference_app
from daemon.http_api.options import HttpOptions
from daemon.service.daemon_service import DaemonService
from tests.fakes import EchoBackend, FakeBackends, SlowBackend, fake_service

T = TypeVar("T")

MODELS = ("echo", "slow", "failing", "crashing")


class RunningDaemon:
    """Both transports on free ports. ``on_loop`` reaches into it safely."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backends: FakeBackends) -> None:
        self.loop = loop
        self.backends = backends
        self.service: DaemonService
        self.grpc: GrpcServer
        self.http_port = 0
        self.end = asyncio.Event()

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc.port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def backend(self, model: str) -> EchoBackend:
        return self.backends.last(model)

    def allow(self, steps: int, model: str = "slow") -> None:
        """Let the slow model make so many tokens."""
        backend = self.backend(model)
        if isinstance(backend, SlowBackend):
            self.loop.call_soon_threadsafe(backend.allow, steps)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Until something is true of the daemon, looked at on its loop."""

        async def poll() -> None:
            async with asyncio.timeout(timeout_s):
                while not condition():  # noqa: ASYNC110 - the condition knows of no event
                    await asyncio.sleep(0.005)

        self.on_loop(poll())


@contextlib.contextmanager
def running_daemon(
    folder: Path,
    models: Sequence[str] = MODELS,
    *,
    default_model: str | None = "echo",
    with_http: bool = False,
    **options: Any,
) -> Iterator[RunningDaemon]:
    """Serve ``models`` over gRPC, and over HTTP if asked to; ``options`` are those of gRPC."""
    started: concurrent.futures.Future[RunningDaemon] = concurrent.futures.Future()
    options.setdefault("health_poll_s", 0.02)

    async def serve() -> None:
        daemon = RunningDaemon(asyncio.get_running_loop(), FakeBackends())
        daemon.service = await fake_service(
            folder, models, backends=daemon.backends, default_model=default_model
        )
        daemon.grpc = await start_grpc(daemon.service, GrpcOptions(port=0, **options))
        async with contextlib.AsyncExitStack() as stack:
            if with_http:
                http = HttpOptions(version="9.9", api_keys=options.get("api_keys", ()))
                app = build_inference_app(daemon.service, http)
                daemon.http_port = await stack.enter_async_context(_http(app))
            started.set_result(daemon)
            await daemon.end.wait()
            await daemon.grpc.stop(0.02)
        await daemon.service.stop(0.0)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    daemon = started.result(30)
    try:
        yield daemon
    finally:
        daemon.loop.call_soon_threadsafe(daemon.end.set)
        thread.join(20)


@contextlib.asynccontextmanager
async def _http(app: Any) -> AsyncIterator[int]:
    """Serve on a free port, and give it."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.002)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving
