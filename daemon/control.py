"""Tells a running daemon what to do: stops it by signal, asks all else over its management port.

Where that port is off the daemon answers on a socket in its state directory.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import time
import urllib.parse
from typing import Any

from contract.faults import Fault, FaultKind
from daemon.state import StateDirectory

STATUS_TIMEOUT_S = 10.0
FORCE_S = 5.0
"""A daemon that is cut short gets this long before it is killed."""
LOAD_TIMEOUT_S = 3600.0
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(@[1-9][0-9]*)?")
_KIND_HEADER = "X-Fault-Kind"
"""As ``http_api.errors`` names it, which is slow to import."""


def status(state: StateDirectory) -> dict[str, Any]:
    """The daemon's addresses and its models. Raises ``Fault``."""
    info = state.require_running()
    answer: dict[str, Any] = _ask(info, "GET", "/status", STATUS_TIMEOUT_S)
    public = {key: value for key, value in info.items() if key not in ("token", "control")}
    return public | answer


def load(state: StateDirectory, model: str) -> None:
    """Load or reload ``NAME`` or ``NAME@VERSION``; returns when it is ready."""
    _control(state.require_running(), model, "load")


def unload(state: StateDirectory, model: str) -> None:
    """Drain and unload ``NAME`` or ``NAME@VERSION``. Raises ``Fault`` NOT_FOUND for an unknown one."""
    info = state.require_running()
    models = _ask(info, "GET", "/status", STATUS_TIMEOUT_S)["models"]
    known = {name for one in models for name in (one["name"], f"{one['name']}@{one['version']}")}
    if model not in known:
        names = ", ".join(sorted({one["name"] for one in models})) or "none"
        raise Fault(FaultKind.NOT_FOUND, f"there is no model {model!r}", f"the models are: {names}")
    _control(info, model, "unload")


def _control(info: dict[str, Any], model: str, verb: str) -> None:
    if not _MODEL.fullmatch(model):
        raise Fault(FaultKind.INVALID_REQUEST, f"{model!r} names no model", "write NAME or NAME@VERSION")
    path = f"/v2/repository/models/{urllib.parse.quote(model, safe='@')}/{verb}"
    _ask(info, "POST", path, LOAD_TIMEOUT_S)


def stop(state: StateDirectory, timeout_s: float, *, force: bool) -> int | None:
    """Stop the daemon, wait until it is gone, and answer its pid. Raises ``Fault``.

    A daemon that is stopping already is left to drain: only ``force`` cuts running requests off.
    """
    info = state.require_running()
    if not info.get("stopping"):
        state.signal(signal.SIGTERM)
    if force:
        _cut_short(state)
    if not state.wait_stopped(timeout_s):
        message = f"the daemon (pid {info.get('pid')}) is still running after {timeout_s:g} s"
        hint = "wait longer with --timeout, or cut short with: daemon stop --force"
        raise Fault(FaultKind.TIMEOUT, message, hint)
    return info.get("pid")


def _cut_short(state: StateDirectory) -> None:
    deadline = time.monotonic() + 1.0
    # The second signal counts once the first has been heard.
    while time.monotonic() < deadline and state.running() and not state.read().get("stopping"):
        time.sleep(0.02)
    for number, patience_s in ((signal.SIGTERM, FORCE_S), (signal.SIGKILL, FORCE_S)):
        with contextlib.suppress(Fault):
            state.signal(number)
        if state.wait_stopped(patience_s):
            return


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(base: str, timeout_s: float) -> http.client.HTTPConnection:
    address = urllib.parse.urlsplit(base)
    if address.scheme == "unix":
        return _UnixConnection(address.path, timeout_s)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)


def _ask(info: dict[str, Any], method: str, path: str, timeout_s: float) -> Any:
    base = info.get("management") or info.get("control")
    if base is None:
        if "http" not in info:
            raise Fault(FaultKind.NOT_READY, "the daemon has just begun to start", "try again in a moment")
        message = "the daemon's management port is off and its state directory takes no socket"
        raise Fault(
            FaultKind.UNSUPPORTED, message, "start it with --management-port, or a shorter --state-dir"
        )
    connection = _connection(base, timeout_s)
    headers = {"Authorization": f"Bearer {info.get('token', '')}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        response = connection.getresponse()
        body = response.read()
    except TimeoutError:
        message = f"the daemon at {base} has not answered for {timeout_s:g} s"
        raise Fault(FaultKind.TIMEOUT, message, "see: daemon logs") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        message = f"the daemon at {base} does not answer: {reason}"
        raise Fault(FaultKind.NOT_READY, message, "see: daemon logs") from None
    finally:
        connection.close()
    if response.status >= 400:
        raise _fault(response, body)
    return json.loads(body) if body else {}


def _fault(response: http.client.HTTPResponse, body: bytes) -> Fault:
    try:
        error = json.loads(body)["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        message = f"the daemon answered {response.status}"
    try:
        kind = FaultKind(response.headers.get(_KIND_HEADER, ""))
    except ValueError:
        kind = FaultKind.INTERNAL
    return Fault(kind, message)
