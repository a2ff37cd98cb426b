"""What every request passes through, as plain ASGI: ids, keys, origins, size, the last resort for errors."""

from __future__ import annotations

import hmac
import logging
import re
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.faults import Fault, FaultKind
from daemon.api_keys import digest
from daemon.http_api.errors import family_of, response_of

logger = logging.getLogger(__name__)

UNWRAPPED_SEND = "mindport.send"
"""Where the scope has the ``send`` below all that only looks at the start of an answer."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_OPEN_PATHS = re.compile(
    r"/(health(/.*)?|ping|v2/health/(live|ready)|v2/models/[^/]+(/versions/[^/]+)?/ready)"
)
"""Probes have no key. Which they are, Triton says: its protocol ``health`` holds models' readiness, too."""


class RequestId:
    """Gives each request the caller's ``X-Request-ID`` or a new id, and returns it with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        scope[UNWRAPPED_SEND] = send

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["RequestUUID"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class LastResort:
    """Turns what nobody caught into an error answer without a traceback; the log has it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except Fault as fault:
            if started:
                raise
            await response_of(family_of(scope["path"]), fault)(scope, receive, send)
        except ClientDisconnect:
            # The caller went away before its body was here: there is nobody to answer.
            return
        except Exception:
            request_id = scope.get("state", {}).get("request_id", "")
            logger.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id)
            if started:
                raise
            message = f"internal error, see the daemon's log for request {request_id}"
            response = response_of(family_of(scope["path"]), Fault(FaultKind.INTERNAL, message))
            await response(scope, receive, send)


class Authentication:
    """Asks for one of the keys, as ``Authorization: Bearer`` or ``X-API-Key``, and notes who calls."""

    def __init__(self, app: ASGIApp, key_hashes: tuple[str, ...]) -> None:
        self._app = app
        self._hashes = tuple(known.lower().encode() for known in key_hashes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(Headers(scope=scope)) if scope["type"] == "http" else ""
        is_open = scope["type"] != "http" or not self._hashes or _OPEN_PATHS.fullmatch(scope["path"])
        if is_open or self._accepts(key):
            # A key that nobody checks would be as many callers as its holder likes.
            host = (scope.get("client") or ("",))[0]
            scope.setdefault("state", {})["caller"] = digest(key) if self._hashes else host
            await self._app(scope, receive, send)
            return
        fault = Fault(
            FaultKind.UNAUTHENTICATED,
            "an API key is required, and the one sent is missing or wrong",
            "send the header Authorization: Bearer KEY",
        )
        await response_of(family_of(scope["path"]), fault)(scope, receive, send)

    def _accepts(self, key: str) -> bool:
        sent = digest(key).encode()
        # Every hash is compared, so that time tells nothing about which one came near.
        return sum(hmac.compare_digest(sent, known) for known in self._hashes) > 0


class SameOrigin:
    """Refuses calls that a web page of another origin makes through its reader's browser."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...] = ()) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or origin in self._allowed or _netloc(origin) == headers.get("host"):
            await self._app(scope, receive, send)
            return
        fault = Fault(
            FaultKind.FORBIDDEN,
            f"pages of {origin} may not call this server",
            "add the origin to the setting that lists allowed origins",
        )
        await response_of(family_of(scope["path"]), fault)(scope, receive, send)


class BodyLimit:
    """Refuses bodies above a size: at once by their header, or when they have grown too large."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._limit:
            await response_of(family_of(scope["path"]), self._fault())(scope, receive, send)
            return
        size = 0

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                raise self._fault()
            return message

        await self._app(scope, receive_counted, send)

    def _fault(self) -> Fault:
        message = f"the request body is larger than the {self._limit} bytes allowed"
        return Fault(FaultKind.TOO_LARGE, message, "send less, or raise the limit in the daemon's settings")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _key(headers: Headers) -> str:
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credential.strip()
    return headers.get("x-api-key", "")
