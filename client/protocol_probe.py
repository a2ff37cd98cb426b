"""What a port speaks, asked only after a connection failed: so that a wrong port is told as such."""

from __future__ import annotations

import asyncio
import contextlib

from client.address import Address
from client.errors import InvalidRequestError
from client.options import invalid

_PATIENCE_S = 1.0
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The preface and an empty SETTINGS frame. Whoever speaks HTTP/2, and so gRPC, answers with such a frame."""
_SETTINGS_FRAME = 4
_TLS_ALERT = 0x15
_NAMES = {"http": "HTTP", "https": "HTTP with TLS", "grpc": "gRPC", "grpcs": "gRPC with TLS"}
_WORDS = {"http": "HTTP without TLS", "grpc": "gRPC without TLS", "tls": "TLS"}


async def wrong_protocol(address: Address) -> InvalidRequestError | None:
    """The fault that names the right address, if the port speaks something other than its scheme says."""
    spoken = await _spoken_at(address.host, address.port)
    if spoken in ("", address.scheme, "tls" if address.scheme in ("https", "grpcs") else ""):
        return None
    right = f"{address.scheme}s" if spoken == "tls" else spoken
    message = f"{address} is the wrong address: that port speaks {_WORDS[spoken]}"
    return invalid(
        message, f"write {right}://{address.target}, or the port that speaks {_NAMES[address.scheme]}"
    )


async def _spoken_at(host: str, port: int) -> str:
    """``http``, ``grpc``, ``tls``, or "" if that cannot be told."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_HTTP2_GREETING)
                answer = await reader.readexactly(5)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, EOFError, TimeoutError):
        return ""
    if answer == b"HTTP/":
        return "http"
    if answer[0] == _TLS_ALERT:
        return "tls"
    return "grpc" if answer[3] == _SETTINGS_FRAME else ""
