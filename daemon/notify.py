"""Tells whoever started the daemon how the start goes: a pipe for ``daemon start``, a socket for systemd."""

from __future__ import annotations

import json
import os
import socket
from typing import Any


class StartReport:
    """Messages as JSON lines to a file descriptor, and READY and STOPPING to systemd."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def progress(self, models: list[dict[str, Any]]) -> None:
        self._write({"progress": models})

    def ready(self, info: dict[str, Any]) -> None:
        self._write({"ready": info})
        self._close()
        _systemd("READY=1\nSTATUS=serving")

    def failed(self, fault: dict[str, Any]) -> None:
        self._write({"fault": fault})
        self._close()
        _systemd(f"STATUS={fault['message'].splitlines()[0]}")

    def stopping(self) -> None:
        _systemd("STOPPING=1")

    def _write(self, message: dict[str, Any]) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, json.dumps(message).encode() + b"\n")
        except OSError:
            self._fd = None  # the starter went away; the daemon goes on

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _systemd(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.sendall(text.encode())
        except OSError:
            return
