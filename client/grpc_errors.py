"""What a server's gRPC status means, and the fault that a MindPort daemon sends along with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from client.errors import RequestError, request_error
from contract.faults import Fault, FaultKind

FAULT_TRAILER = "mindport-fault-bin"
"""Trailing metadata in which the daemon sends the fault as JSON; the status alone is coarser."""

KINDS_OF_CODE: Mapping[grpc.StatusCode, FaultKind] = {
    grpc.StatusCode.CANCELLED: FaultKind.CANCELLED,
    grpc.StatusCode.INVALID_ARGUMENT: FaultKind.INVALID_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: FaultKind.INVALID_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: FaultKind.INVALID_REQUEST,
    grpc.StatusCode.DEADLINE_EXCEEDED: FaultKind.TIMEOUT,
    grpc.StatusCode.NOT_FOUND: FaultKind.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: FaultKind.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED: FaultKind.FORBIDDEN,
    grpc.StatusCode.UNAUTHENTICATED: FaultKind.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: FaultKind.OVERLOADED,
    grpc.StatusCode.UNIMPLEMENTED: FaultKind.UNSUPPORTED,
    grpc.StatusCode.UNAVAILABLE: FaultKind.NOT_READY,
}
"""For a server that sends no fault; all other codes are its own failures."""

_DEFAULT_RETRY_AFTER_S = 1.0


def error_of_status(
    code: grpc.StatusCode, details: str, fault: Fault | None, request_id: str
) -> RequestError:
    """The exception for a call that the server ended with an error."""
    if fault is None:
        kind = KINDS_OF_CODE.get(code, FaultKind.INTERNAL)
        return request_error(kind, details or f"the server answered {code.name}", request_id=request_id)
    retry_after_s = fault.details.get("retry_after_s")
    if retry_after_s is None and fault.kind is FaultKind.OVERLOADED:
        retry_after_s = _DEFAULT_RETRY_AFTER_S
    return request_error(
        fault.kind, fault.message, fault.hint, request_id=request_id, retry_after_s=retry_after_s
    )


def fault_of_trailer(trailer: Iterable[tuple[str, Any]] | None) -> Fault | None:
    """The daemon's fault, if the trailing metadata holds one."""
    for key, value in trailer or ():
        if key == FAULT_TRAILER:
            try:
                return Fault.from_dict(json.loads(value))
            except (ValueError, KeyError, TypeError):
                return None
    return None
