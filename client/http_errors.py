"""What a server's HTTP status and error body mean, whichever dialect wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx2

from client.errors import RequestError, request_error
from contract.faults import FaultKind

KINDS_OF_STATUS: Mapping[int, FaultKind] = {
    400: FaultKind.INVALID_REQUEST,
    401: FaultKind.UNAUTHENTICATED,
    403: FaultKind.FORBIDDEN,
    404: FaultKind.NOT_FOUND,
    405: FaultKind.UNSUPPORTED,
    408: FaultKind.TIMEOUT,
    409: FaultKind.ALREADY_EXISTS,
    413: FaultKind.TOO_LARGE,
    422: FaultKind.INVALID_REQUEST,
    424: FaultKind.NOT_READY,
    429: FaultKind.OVERLOADED,
    499: FaultKind.CANCELLED,
    500: FaultKind.INTERNAL,
    501: FaultKind.UNSUPPORTED,
    502: FaultKind.NOT_READY,
    503: FaultKind.NOT_READY,
    504: FaultKind.TIMEOUT,
}
"""For a body that names no kind."""

FAULT_HEADER = "X-Fault-Kind"
"""In which a daemon names the kind of every error; the status alone is coarser."""

_KINDS_OF_NAME: Mapping[str, FaultKind] = {
    **{kind.value: kind for kind in FaultKind},
    "context_length_exceeded": FaultKind.CONTEXT_OVERFLOW,
    "invalid_api_key": FaultKind.UNAUTHENTICATED,
    "model_not_found": FaultKind.NOT_FOUND,
}
"""What the member ``code`` of an error may say: a daemon's own kinds and OpenAI's words."""


def error_of_response(response: httpx2.Response, body: bytes, request_id: str) -> RequestError:
    """The exception for an answer whose status is not 200."""
    if response.headers.get("Content-Type", "").startswith("text/html"):
        return _error_of_page(response, request_id)
    try:
        decoded = json.loads(body)
    except ValueError:
        decoded = body.decode("utf-8", "replace").strip()[:500]
    if not decoded:
        decoded = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    error = error_of_body(decoded, response.status_code, request_id, response.headers.get(FAULT_HEADER))
    # A worker that crashed over this request also answers 503: that is not to be tried again.
    if error.kind in {FaultKind.OVERLOADED, FaultKind.NOT_READY}:
        error.retry_after_s = _seconds(response.headers.get("Retry-After"))
    return error


def _error_of_page(response: httpx2.Response, request_id: str) -> RequestError:
    """A page for people, as proxies and other programs send it; no daemon does."""
    kind = KINDS_OF_STATUS.get(response.status_code, FaultKind.INTERNAL)
    message = f"{response.url} answered {response.status_code} {response.reason_phrase} with a web page"
    hint = "another program may have this port, or a proxy stand before it; a daemon's is http://HOST:1025"
    return request_error(kind, message, hint, request_id=request_id)


def error_of_body(body: Any, status: int, request_id: str, named: str | None = None) -> RequestError:
    """The exception for an error body: ``{"error": {...}}``, ``{"error": "text"}`` or plain text.

    ``named`` is the kind as the daemon's header has it.
    """
    inner = body.get("error", body) if isinstance(body, dict) else body
    fields: dict[str, Any] = inner if isinstance(inner, dict) else {"message": str(inner)}
    outer = body if isinstance(body, dict) else {}
    message = fields.get("message") or outer.get("message") or outer.get("detail") or json.dumps(body)
    sentence, hint = _without_hint(str(message))
    code = fields.get("code")
    for name in (named, code):
        if isinstance(name, str) and name in _KINDS_OF_NAME:
            return request_error(_KINDS_OF_NAME[name], sentence, hint, request_id=request_id)
    # Inside a stream there is no status; some servers write it into the error instead.
    known = code if status == 500 and isinstance(code, int) else status
    fallback = FaultKind.INVALID_REQUEST if 400 <= status < 500 else FaultKind.INTERNAL
    kind = KINDS_OF_STATUS.get(known, fallback)
    return request_error(kind, sentence, hint, request_id=request_id)


def _without_hint(message: str) -> tuple[str, str]:
    """A daemon's message is one sentence, with its hint in brackets at the end."""
    sentence, opened, rest = message.partition(" (")
    if opened and rest.endswith(")") and "(" not in rest:
        return sentence, rest[:-1]
    return message, ""


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in seconds; its form as a date is not used between programs and is ignored."""
    try:
        return max(0.0, float(retry_after)) if retry_after is not None else None
    except ValueError:
        return None
