"""A small HTTP server that answers as a test tells it to, on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Reply:
    """One answer: ``parts`` are sent one by one, the connection is then closed or kept alive."""

    status: int = 200
    parts: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False


@dataclass
class ScriptedServer:
    """Gives its replies in order, the last one again and again, and keeps what it was sent."""

    replies: list[Reply]
    paths: list[str] = field(default_factory=list)
    """As they were on the wire."""
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    closed_early: threading.Event = field(default_factory=threading.Event)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.paths.append(request.scope["raw_path"].decode())
        self.bodies.append(json.loads(body) if body else None)
        self.headers.append(dict(request.headers))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return StreamingResponse(self._parts(reply), reply.status, reply.headers)

    async def _parts(self, reply: Reply) -> AsyncIterator[str]:
        try:
            for part in reply.parts:
                yield part
                await asyncio.sleep(0.001)
            while reply.hangs:
                yield ": still here\n\n"
                await asyncio.sleep(0.01)
        finally:
            self.closed_early.set()


@contextlib.contextmanager
def scripted(*replies: Reply) -> Iterator[tuple[str, ScriptedServer]]:
    """Serve the replies on every path; gives the URL and the server."""
    script = ScriptedServer(list(replies))
    app = Starlette(routes=[Route("/{path:path}", script.answer, methods=["GET", "POST"])])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.002)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", script
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def completion(text: str = "你好", reason: str = "stop") -> Reply:
    """A whole chat completion."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return Reply(parts=(json.dumps({"model": "m", "choices": [choice], "usage": usage}),))


def event(content: str | None = None, reason: str | None = None, **more: Any) -> str:
    """One event of a streamed chat completion."""
    delta = {} if content is None else {"content": content}
    data = {"model": "m", "choices": [{"delta": delta, "finish_reason": reason}], **more}
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def streamed(*events: str, hangs: bool = False) -> Reply:
    return Reply(parts=events, headers={"Content-Type": "text/event-stream"}, hangs=hangs)


DONE = "data: [DONE]\n\n"
