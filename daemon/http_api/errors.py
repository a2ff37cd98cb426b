"""Faults as HTTP: one table of statuses, one body shape for each family of dialects.

429 and 503 are for what may succeed later and carry ``Retry-After``: a full queue, a model that loads, or one
whose worker died and is being restarted. 499 is a request that was cancelled while someone still listened.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from contract.faults import Fault, FaultKind

FAULT_HEADER = "X-Fault-Kind"
"""Header of every error with the fault's kind, whatever the dialect's body says."""

STATUS: Mapping[FaultKind, int] = {
    FaultKind.INVALID_REQUEST: 400,
    FaultKind.UNSUPPORTED: 400,
    FaultKind.TOO_LARGE: 413,
    FaultKind.CONTEXT_OVERFLOW: 400,
    FaultKind.UNAUTHENTICATED: 401,
    FaultKind.FORBIDDEN: 403,
    FaultKind.NOT_FOUND: 404,
    FaultKind.ALREADY_EXISTS: 409,
    FaultKind.NOT_READY: 503,
    FaultKind.OVERLOADED: 429,
    FaultKind.TIMEOUT: 504,
    FaultKind.CANCELLED: 499,
    FaultKind.OUT_OF_MEMORY: 503,
    FaultKind.INVALID_CONFIG: 500,
    FaultKind.INVALID_MODEL: 500,
    FaultKind.UNTRUSTED_CODE: 500,
    FaultKind.VERIFICATION_FAILED: 500,
    FaultKind.START_FAILED: 500,
    FaultKind.MODEL_CRASHED: 503,
    FaultKind.INTERNAL: 500,
}


class Family(enum.StrEnum):
    """Dialects that shape errors alike."""

    OPENAI = "openai"
    MINDIE = "mindie"
    TGI = "tgi"
    TRITON = "triton"


_EXCEPTIONS: Mapping[Family, Mapping[FaultKind, int]] = {
    Family.OPENAI: {},
    Family.MINDIE: {
        FaultKind.INVALID_REQUEST: 422,
        FaultKind.UNSUPPORTED: 422,
        FaultKind.CONTEXT_OVERFLOW: 424,
    },
    Family.TGI: {
        FaultKind.INVALID_REQUEST: 422,
        FaultKind.UNSUPPORTED: 422,
        FaultKind.CONTEXT_OVERFLOW: 422,
    },
    # A model that cannot be loaded is the caller's 400 in Triton.
    Family.TRITON: {
        FaultKind.UNSUPPORTED: 501,
        FaultKind.ALREADY_EXISTS: 400,
        FaultKind.INVALID_MODEL: 400,
        FaultKind.UNTRUSTED_CODE: 400,
        FaultKind.VERIFICATION_FAILED: 400,
    },
}

_RETRY_LATER = frozenset((429, 503))

_OPENAI_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_OPENAI_CODES: Mapping[FaultKind, str] = {
    FaultKind.CONTEXT_OVERFLOW: "context_length_exceeded",
    FaultKind.UNAUTHENTICATED: "invalid_api_key",
}
_MINDIE_TYPES: Mapping[int, str] = {
    401: "Authentication Error",
    403: "Permission Error",
    404: "NotFoundError",
    405: "Method Not Allowed",
    413: "Request Too Large",
    422: "Input Validation Error",
    424: "Generation Error",
    429: "Too Many Requests",
    499: "Request Cancelled",
    503: "Service Unavailable",
    504: "Request Timeout",
}
_TGI_TYPES: Mapping[int, str] = {
    401: "authentication",
    403: "permission",
    404: "not_found",
    413: "validation",
    422: "validation",
    424: "generation",
    429: "overloaded",
    503: "unhealthy",
}


def status_of(family: Family, kind: FaultKind) -> int:
    return _EXCEPTIONS[family].get(kind, STATUS[kind])


def family_of(path: str) -> Family:
    """Whose error shape fits a path that no dialect has claimed."""
    if path == "/v2" or path.startswith("/v2/"):
        return Family.TRITON
    return Family.OPENAI if path.startswith("/v1/") else Family.MINDIE


def body_of(family: Family, fault: Fault, status: int | None = None) -> dict[str, Any]:
    """The error object of a dialect."""
    return _BODIES[family](fault, status or status_of(family, fault.kind))


def response_of(family: Family, fault: Fault, status: int | None = None) -> Response:
    """A whole error answer."""
    code = status or status_of(family, fault.kind)
    headers = {FAULT_HEADER: fault.kind.value}
    if code in _RETRY_LATER:
        headers["Retry-After"] = str(max(1, round(float(fault.details.get("retry_after_s", 1)))))
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = msgspec.json.encode(body_of(family, fault, code))
    return Response(content, code, headers, media_type="application/json")


def _openai(fault: Fault, status: int) -> dict[str, Any]:
    default = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(fault),
            "type": _OPENAI_TYPES.get(status, default),
            "param": fault.details.get("param"),
            "code": _OPENAI_CODES.get(fault.kind, fault.kind.value),
        }
    }


def _mindie(fault: Fault, status: int) -> dict[str, Any]:
    return {"error": str(fault), "error_type": _MINDIE_TYPES.get(status, "Incomplete Generation")}


def _tgi(fault: Fault, status: int) -> dict[str, Any]:
    return {"error": str(fault), "error_type": _TGI_TYPES.get(status, "incomplete_generation")}


def _triton(fault: Fault, status: int) -> dict[str, Any]:
    return {"error": str(fault)}


_BODIES: Mapping[Family, Callable[[Fault, int], dict[str, Any]]] = {
    Family.OPENAI: _openai,
    Family.MINDIE: _mindie,
    Family.TGI: _tgi,
    Family.TRITON: _triton,
}
