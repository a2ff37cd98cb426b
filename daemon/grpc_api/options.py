"""What the gRPC front is told by the settings."""

from __future__ import annotations

import msgspec


class GrpcOptions(msgspec.Struct, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 8001
    """0 takes a free one; ``GrpcServer.port`` tells which."""
    version: str = "0"
    """Of MindPort, as ``ServerMetadata`` reports it."""
    api_keys: tuple[str, ...] = ()
    """SHA-256 of each accepted key, in hexadecimal; none: no key is asked for."""
    restrict_model_control: bool = False
    """Refuse load and unload; they answer on the HTTP management port alone."""
    health_poll_s: float = 0.5
    """How often a health ``Watch`` looks for a change."""
