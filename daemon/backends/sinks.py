"""Tokens are pushed into sinks or pulled from iterators: from the one to the other.

Knows nothing of processes or engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import cast

from contract.faults import Fault, FaultKind
from daemon.backends.base import Cancel, TokenEvent, TokenRequest, TokenSink

_log = logging.getLogger("worker")


async def pump(events: AsyncIterator[TokenEvent], sink: TokenSink) -> None:
    """Push what ``generate`` yields. Cancel the task to cancel the request."""
    try:
        async with contextlib.aclosing(cast("AsyncGenerator[TokenEvent, None]", events)):
            async for event in events:
                sink.put(event)
                if event.finish is not None:
                    return
        message = "the backend ended an answer without saying why"
        raise Fault(FaultKind.INTERNAL, message, "try again; report it if it recurs")
    except Exception as error:
        sink.fail(fault_of(error, "answering failed"))


async def pull(
    start: Callable[[TokenRequest, TokenSink], Cancel], request: TokenRequest
) -> AsyncIterator[TokenEvent]:
    """``generate`` of a backend that pushes."""
    inbox = TokenInbox()
    cancel = start(request, inbox)
    try:
        while not inbox.over:
            yield await inbox.get()
    finally:
        cancel()


def fault_of(error: Exception, what: str) -> Fault:
    """What a caller is told of an error; the log has all of it."""
    if isinstance(error, Fault):
        return error
    _log.error("%s", what, exc_info=error)
    if isinstance(error, MemoryError):
        return Fault(
            FaultKind.OUT_OF_MEMORY, f"{what}: out of memory", "free memory, or lower the model's limits"
        )
    return Fault(FaultKind.INTERNAL, f"{what}: {type(error).__name__}: {error}", "the daemon's log has more")


def merge(events: Sequence[TokenEvent]) -> TokenEvent:
    """Consecutive events of one request as one."""
    if len(events) == 1:
        return events[0]
    first, last = events[0], events[-1]
    choices = None
    if any(event.choices is not None for event in events):
        choices = [choice for event in events for choice in event.choices or ()]
    return TokenEvent(
        token_ids=[token for event in events for token in event.token_ids],
        choices=choices,
        prompt_choices=next((e.prompt_choices for e in events if e.prompt_choices is not None), None),
        finish=last.finish,
        cached_tokens=first.cached_tokens,
        queue_s=first.queue_s,
    )


class TokenInbox:
    """Events of one request on the way to its reader. Unread ones merge: a slow reader costs no one else."""

    def __init__(self) -> None:
        self.over = False
        """The reader has got the finish or the fault."""
        self._events: list[TokenEvent] = []
        self._fault: Fault | None = None
        self._arrived = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        self._events.append(event)
        self._arrived.set()

    def fail(self, fault: Fault) -> None:
        """End the stream, after what has already arrived. The first fault counts."""
        self._fault = self._fault or fault
        self._arrived.set()

    async def get(self) -> TokenEvent:
        """Everything that has arrived, at least one token or the finish. Raises ``Fault``."""
        await self._arrived.wait()
        if self._events:
            event = merge(self._events)
            self._events.clear()
            self.over = event.finish is not None
        elif self._fault is not None:
            self.over = True
            raise self._fault
        else:
            raise RuntimeError("an inbox woke up empty")
        if self._fault is None:
            self._arrived.clear()
        return event
