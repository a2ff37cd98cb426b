"""What the HTTP front is told by the settings."""

from __future__ import annotations

from typing import Literal

import msgspec

GenerateFlavour = Literal["mindie", "tgi"]


class HttpOptions(msgspec.Struct, frozen=True, kw_only=True):
    version: str = "0"
    """Of MindPort, as ``/info``, ``/version`` and ``/v2`` report it."""
    max_body_bytes: int = 40 * 1024 * 1024
    """A larger body is refused, also after decompression."""
    max_json_depth: int = 64
    api_keys: tuple[str, ...] = ()
    """SHA-256 of each accepted key, in hexadecimal; none: no key is asked for."""
    generate_flavour: GenerateFlavour = "mindie"
    """Which server ``/generate`` imitates where TGI and MindIE differ."""
    restrict_model_control: bool = False
    """Load and unload answer on the management port alone."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages of these origins may call; none: pages of no other origin may."""
