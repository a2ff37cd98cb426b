"""Faults as gRPC: one table of status codes, and the whole fault in the trailing metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc

from contract.faults import Fault, FaultKind

logger = logging.getLogger(__name__)

FAULT_TRAILER = "mindport-fault-bin"
"""Trailing metadata with the fault as JSON: its kind is finer than the status, its hint apart."""

CODES: Mapping[FaultKind, grpc.StatusCode] = {
    FaultKind.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    FaultKind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    FaultKind.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    FaultKind.CONTEXT_OVERFLOW: grpc.StatusCode.INVALID_ARGUMENT,
    FaultKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    FaultKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    FaultKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    FaultKind.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    FaultKind.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    FaultKind.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FaultKind.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    FaultKind.CANCELLED: grpc.StatusCode.CANCELLED,
    FaultKind.OUT_OF_MEMORY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FaultKind.INVALID_CONFIG: grpc.StatusCode.INTERNAL,
    # A model that cannot be loaded is the caller's INVALID_ARGUMENT in Triton.
    FaultKind.INVALID_MODEL: grpc.StatusCode.INVALID_ARGUMENT,
    FaultKind.UNTRUSTED_CODE: grpc.StatusCode.INVALID_ARGUMENT,
    FaultKind.VERIFICATION_FAILED: grpc.StatusCode.INVALID_ARGUMENT,
    FaultKind.START_FAILED: grpc.StatusCode.INTERNAL,
    FaultKind.MODEL_CRASHED: grpc.StatusCode.UNAVAILABLE,
    FaultKind.INTERNAL: grpc.StatusCode.INTERNAL,
}

_MESSAGE_BYTES, _HINT_BYTES = 1200, 600
"""Clients refuse more than 8 KiB of metadata, in which a byte that is not ASCII takes
three, with another error."""


def trailer_of(fault: Fault) -> tuple[tuple[str, bytes], ...]:
    """The fault as trailing metadata, its details reduced to what a client acts on."""
    data: dict[str, Any] = {"kind": fault.kind.value, "message": _cut(fault.message, _MESSAGE_BYTES)}
    if fault.hint:
        data["hint"] = _cut(fault.hint, _HINT_BYTES)
    if "retry_after_s" in fault.details:
        data["details"] = {"retry_after_s": fault.details["retry_after_s"]}
    return ((FAULT_TRAILER, json.dumps(data, ensure_ascii=False).encode()),)


async def abort(context: grpc.aio.ServicerContext[Any, Any], fault: Fault) -> NoReturn:
    """End the call with the fault."""
    await context.abort(CODES[fault.kind], _cut(str(fault), _MESSAGE_BYTES), trailer_of(fault))
    raise fault  # not reached: abort raises


def unexpected(call: str, error: Exception) -> Fault:
    """A defect of ours as a fault; the log has the rest. To be called while ``error`` is handled."""
    logger.exception("%s failed", call)
    return Fault(FaultKind.INTERNAL, f"internal error in {call}: {type(error).__name__}", "see: daemon logs")


def _cut(text: str, size: int) -> str:
    data = text.encode("utf-8", "replace")
    return text if len(data) <= size else data[:size].decode("utf-8", "ignore") + "…"
