"""Answers that are computed while the connection is watched.

An answer's work runs in one task from its first step to its last. When the client goes away, streaming or
not, the work is cancelled, which closes the generators it drives and so cancels in the engine.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from contract.faults import Fault
from daemon.http_api.errors import Family, response_of

Handler = Callable[[Request], Awaitable[Response]]


class WatchedAnswer(Response, ABC):
    """An ASGI response whose ``work`` ends early when nobody listens any more."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    @abstractmethod
    async def work(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compute and send the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # In the request's own task: a task for the work would put off its first step.
        task, over, departed = asyncio.current_task(), False, False

        def cancel(_: asyncio.Task[None]) -> None:
            nonlocal departed
            if task is not None and not over:
                departed = task.cancel()

        departure = asyncio.create_task(_departure(receive))
        departure.add_done_callback(cancel)
        try:
            await self.work(scope, receive, send)
        except asyncio.CancelledError:
            if task is None or not departed or task.uncancel():
                raise
        finally:
            over = True
            departure.cancel()


class Computed(WatchedAnswer):
    """A response that takes a while: ``compute`` returns it or raises ``Fault``."""

    def __init__(self, family: Family, compute: Callable[[], Awaitable[Response]]) -> None:
        super().__init__(family)
        self._compute = compute

    async def work(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._compute()
        except Fault as fault:
            response = response_of(self.family, fault)
        await response(scope, receive, send)


def endpoint(family: Family, handler: Handler) -> Handler:
    """A handler whose faults become answers in the family's shape."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Fault as fault:
            return response_of(family, fault)

    return handle


async def _departure(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
