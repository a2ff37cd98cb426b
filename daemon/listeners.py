"""Sockets and the HTTP servers on them. Ports are bound before any model loads, so a clash shows at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from contract.faults import Fault, FaultKind

BACKLOG = 2048
MAX_HEADER_BYTES = 128 << 10


@dataclass(frozen=True)
class Bound:
    """A listening socket and the address clients use."""

    name: str
    sock: socket.socket
    host: str
    port: int
    path: str = ""
    """Of a Unix socket, which has neither host nor port."""

    @property
    def url(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def forget(self) -> None:
        """Leave nothing behind."""
        if self.path:
            Path(self.path).unlink(missing_ok=True)


def bind(name: str, host: str, port: int) -> Bound:
    """Listen on ``host:port``; port 0 takes a free one. Raises ``Fault`` START_FAILED naming the setting."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named, or asyncio leaves Nagle's algorithm on: 40 ms for each answer on a used
        # connection.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        message = f"{name}: {host} is no address of this machine: {error.strerror}"
        hint = "take 127.0.0.1, or 0.0.0.0 for every address of this machine"
        raise Fault(FaultKind.START_FAILED, message, hint) from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        flag = name.replace("_", "-")
        message = f"{name}: cannot listen on {host}:{port}: {error.strerror}"
        raise Fault(
            FaultKind.START_FAILED, message, f"choose another with --{flag}, 0 takes a free one"
        ) from None
    sock.setblocking(False)
    return Bound(name, sock, host, sock.getsockname()[1])


def bind_path(name: str, path: Path) -> Bound:
    """Listen on a Unix socket that only this user may open. Raises ``OSError``."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return Bound(name, sock, "", 0, str(path))


class _Protocol(HttpToolsProtocol):
    """The parser keeps headers as long as they come: a connection may not fill the memory with them."""

    _header_bytes = 0
    _in_headers = True

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are larger than {MAX_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers, self._header_bytes = False, 0
        super().on_headers_complete()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpListener:
    """One ASGI application on one bound socket."""

    def __init__(self, bound: Bound, app: Any) -> None:
        self.bound = bound
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self.bound.sock]), name=self.bound.name)
        while not self._server.started:
            if self._task.done():
                await self._task
                raise Fault(FaultKind.START_FAILED, f"{self.bound.name}: the HTTP server ended at once")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Close the listener; connections left are cut after a second."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self.bound.forget()
