"""Asks a running daemon over its management port, for ``status``, ``ps``, ``load`` and ``unload``."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from contract.faults import Fault, FaultKind
from daemon.state import StateDirectory

LOAD_TIMEOUT_S = 3600.0


def status(state: StateDirectory) -> dict[str, Any]:
    """The daemon's addresses and its models. Raises ``Fault``."""
    info = state.require_running()
    answer: dict[str, Any] = _ask(info, "GET", "/status", 10.0)
    public = {key: value for key, value in info.items() if key != "token"}
    return public | answer


def load(state: StateDirectory, model: str) -> None:
    """Load or reload ``NAME`` or ``NAME@VERSION``; returns when it is ready."""
    _ask(state.require_running(), "POST", f"/v2/repository/models/{_quoted(model)}/load", LOAD_TIMEOUT_S)


def unload(state: StateDirectory, model: str) -> None:
    """Drain and unload ``NAME`` or ``NAME@VERSION``."""
    _ask(state.require_running(), "POST", f"/v2/repository/models/{_quoted(model)}/unload", LOAD_TIMEOUT_S)


def _quoted(model: str) -> str:
    return urllib.parse.quote(model, safe="@")


def _ask(info: dict[str, Any], method: str, path: str, timeout_s: float) -> Any:
    base = info.get("management") or info.get("http")
    if base is None:
        message = "the daemon has no HTTP listener to ask"
        raise Fault(FaultKind.UNSUPPORTED, message, "start it with --management-port")
    request = urllib.request.Request(  # noqa: S310  the address is the daemon's own
        base + path,
        method=method,
        data=b"{}" if method == "POST" else None,
        headers={"Authorization": f"Bearer {info.get('token', '')}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            body = response.read()
    except urllib.error.HTTPError as error:
        raise _fault(error) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise Fault(
            FaultKind.NOT_READY, f"the daemon at {base} does not answer: {error}", "daemon logs"
        ) from None
    return json.loads(body) if body else {}


def _fault(error: urllib.error.HTTPError) -> Fault:
    try:
        body = json.loads(error.read())
        message = body["error"]["message"] if isinstance(body["error"], dict) else str(body["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the daemon answered {error.code}"
    kinds = {404: FaultKind.NOT_FOUND, 503: FaultKind.NOT_READY, 401: FaultKind.UNAUTHENTICATED}
    return Fault(kinds.get(error.code, FaultKind.INVALID_REQUEST), message)
