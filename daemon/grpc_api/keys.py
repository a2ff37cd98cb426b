"""Asks every call for an API key, as ``authorization: Bearer KEY`` or ``x-api-key: KEY``."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote

import grpc

from contract.faults import Fault, FaultKind
from daemon.api_keys import digest
from daemon.grpc_api.errors import abort

_OPEN_CALLS = frozenset(
    (
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/inference.GRPCInferenceService/ModelReady",
    )
)
"""Probes have no key, as over HTTP."""

_FIRST_MESSAGE_S = 1.0


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, key_hashes: Iterable[str]) -> None:
        self._hashes = tuple(known.lower().encode() for known in key_hashes)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        details = handler_call_details
        if details.method in _OPEN_CALLS or self._accepts(details.invocation_metadata):
            return await continuation(details)
        return grpc.stream_stream_rpc_method_handler(_refuse)

    def _accepts(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        sent = digest(_key(metadata)).encode()
        # Every hash is compared, so that time tells nothing about which one came near.
        return sum(hmac.compare_digest(sent, known) for known in self._hashes) > 0


async def _refuse(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
    # A call that ends while its client still sends appears there as a defect and not as this status.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            await anext(requests, None)
    message = "an API key is required, and the one sent is missing or wrong"
    await abort(
        context, Fault(FaultKind.UNAUTHENTICATED, message, "send the metadata authorization: Bearer KEY")
    )


def caller_of(context: grpc.aio.ServicerContext[Any, Any], *, has_keys: bool) -> str:
    """Whose call it is: by key where keys are checked, else by address."""
    if has_keys:
        return digest(_key(context.invocation_metadata() or ()))
    peer = str(context.peer())
    host, _, _ = peer.rpartition(":")
    return unquote(host.partition(":")[2]).strip("[]") or peer


def _key(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    fields = {name: value for name, value in metadata if isinstance(value, str)}
    scheme, _, key = fields.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else fields.get("x-api-key", "")
