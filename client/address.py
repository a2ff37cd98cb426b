"""Where the server is: ``http://127.0.0.1:1025``, ``grpc://127.0.0.1:8001``, or just ``host:port``."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from client.options import invalid

DEFAULT_HTTP = "http://127.0.0.1:1025"
DEFAULT_GRPC = "grpc://127.0.0.1:8001"

_PORTS = {"http": 1025, "https": 443, "grpc": 8001, "grpcs": 8001}
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")


class Address(msgspec.Struct, frozen=True):
    scheme: Literal["http", "https", "grpc", "grpcs"]
    host: str
    port: int
    path: str = ""
    """Of a reverse proxy in front of the server; empty without one."""

    @property
    def is_grpc(self) -> bool:
        return self.scheme.startswith("grpc")

    @property
    def target(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Then no proxy of the environment is meant to be used."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.target}{self.path}"


def parse_address(text: str, scheme: str = "http") -> Address:
    """Read an address; ``scheme`` is for one that names none. Raises ``InvalidRequestError``."""
    hint = f"write {DEFAULT_HTTP} or {DEFAULT_GRPC}"
    parts = urlsplit(text if "://" in text else f"{scheme}://{text}")
    try:
        port = parts.port
    except ValueError:
        raise invalid(f"{text!r} is not an address: its port is not a number up to 65535", hint) from None
    if parts.scheme not in _PORTS:
        raise invalid(f"{text!r} is not an address: {parts.scheme!r} is neither HTTP nor gRPC", hint)
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise invalid(f"{text!r} is not an address", hint)
    if port is None:
        # A full URL without a port means what it means everywhere; a bare host means the daemon's port.
        port = 80 if "://" in text and parts.scheme == "http" else _PORTS[parts.scheme]
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(parts.scheme, parts.hostname, port, path)  # type: ignore[arg-type]


def looks_like_address(text: str) -> bool:
    """Tell ``--grpc 10.0.0.1:8001`` from ``--grpc "a prompt"``."""
    if "://" in text:
        return " " not in text
    return text == "localhost" or bool(_HOST_PORT.fullmatch(text))
