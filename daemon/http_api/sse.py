"""Server-sent events: framing, and a streamed answer whose status waits for its first event."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from contract.faults import Fault, FaultKind
from daemon.http_api.errors import FAULT_HEADER, Family, body_of, response_of, status_of
from daemon.http_api.exchange import WatchedAnswer
from daemon.http_api.middleware import UNWRAPPED_SEND

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()

_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def event(value: Any) -> bytes:
    """One event with a JSON value."""
    return b"data: " + _encoder.encode(value) + b"\n\n"


def message(value: Any) -> bytes:
    """A JSON value ended by a NUL byte: vLLM's old way of streaming."""
    return _encoder.encode(value) + b"\0"


class Framing(NamedTuple):
    content_type: bytes
    frame: Callable[[Any], bytes]


EVENTS = Framing(b"text/event-stream; charset=utf-8", event)
MESSAGES = Framing(b"application/json", message)


class FramedFaultError(Exception):
    """A fault after the model had begun; keeps the event form even where no event was sent before it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class EventStream(WatchedAnswer):
    """Sends what ``chunks`` yields.

    A fault before the first chunk is an ordinary error answer; a later one is the stream's last event.
    """

    def __init__(
        self, family: Family, chunks: AsyncGenerator[bytes, None], framing: Framing = EVENTS
    ) -> None:
        super().__init__(family)
        self._chunks = chunks
        self._framing = framing

    async def work(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            try:
                first = await anext(chunks, b"")
            except Fault as fault:
                await response_of(self.family, fault)(scope, receive, send)
                return
            except FramedFaultError as error:
                await self._start(send, error.fault)
                await self._end(send, self._framing.frame(body_of(self.family, error.fault)))
                return
            await self._start(send)
            # What wraps ``send`` has seen the start, and that is all it looks at.
            send = scope.get(UNWRAPPED_SEND, send)
            await self._end(send, await self._send_all(send, first))

    async def _send_all(self, send: Send, first: bytes) -> bytes:
        """Send every chunk; what to send last, if anything, is returned."""
        try:
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Fault as fault:
            return self._framing.frame(body_of(self.family, fault))
        except FramedFaultError as error:
            return self._framing.frame(body_of(self.family, error.fault))
        except OSError:
            raise
        except Exception:
            # The status is out: the client learns of the defect by an event, the log has the traceback.
            logger.exception("a stream ended with a defect")
            return self._framing.frame(
                body_of(self.family, Fault(FaultKind.INTERNAL, "internal error, see the daemon's log"))
            )
        return b""

    async def _start(self, send: Send, fault: Fault | None = None) -> None:
        status, headers = 200, [(b"content-type", self._framing.content_type), *_HEADERS]
        if fault is not None:
            status = status_of(self.family, fault.kind)
            headers.append((FAULT_HEADER.lower().encode(), fault.kind.value.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})

    @staticmethod
    async def _end(send: Send, last: bytes) -> None:
        await send({"type": "http.response.body", "body": last, "more_body": False})
