"""Request bodies: read, decompressed, decoded within limits. JSON answers, encoded fast."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from contract.faults import Fault, FaultKind
from daemon.http_api.options import HttpOptions

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_PLAIN = "send the body plain, or compressed whole"


async def read(request: Request, options: HttpOptions) -> bytes:
    """The body, decompressed. Raises ``Fault``."""
    data = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return data
    if encoding not in _WINDOW_BITS:
        message = f"Content-Encoding '{encoding}' is not supported"
        raise Fault(FaultKind.UNSUPPORTED, message, "send the body plain, or with gzip or deflate")
    return _decompressed(data, encoding, options.max_body_bytes)


async def read_object(request: Request, options: HttpOptions) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object. Raises ``Fault``."""
    data = await read(request, options)
    return decode_object(data, options) if data.strip() else {}


def decode_object(data: bytes, options: HttpOptions) -> dict[str, Any]:
    """A JSON object, not nested deeper than allowed. Raises ``Fault``."""
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise _too_deep(options) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the request body is not valid JSON: {error}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "send one JSON object, in UTF-8") from None
    if not isinstance(value, dict):
        raise Fault(FaultKind.INVALID_REQUEST, "the request body must be a JSON object")
    _check_depth(value, options)
    return value


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _check_depth(value: Any, options: HttpOptions) -> None:
    level = [value]
    for _ in range(options.max_json_depth):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep(options)


def _too_deep(options: HttpOptions) -> Fault:
    message = f"the request body is nested deeper than {options.max_json_depth} levels"
    return Fault(FaultKind.INVALID_REQUEST, message, "send flatter JSON")


def _decompressed(data: bytes, encoding: str, limit: int) -> bytes:
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        message = f"the body is not valid {encoding} data: {error}"
        raise Fault(FaultKind.INVALID_REQUEST, message, _PLAIN) from None
    if len(plain) > limit:
        message = f"the decompressed body is larger than the {limit} bytes allowed"
        raise Fault(FaultKind.TOO_LARGE, message, "send less, or raise max_body_mb in the daemon's settings")
    if not decompressor.eof:
        message = f"the body is not valid {encoding} data: it ends too early"
        raise Fault(FaultKind.INVALID_REQUEST, message, _PLAIN)
    return plain
