"""The daemon's own endpoints on the management port."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daemon.http_api import bodies
from daemon.service.facade import Service


class DaemonControl(Protocol):
    """What the management port may do to the process."""

    def status(self) -> dict[str, Any]:
        """Facts of the daemon itself: version, pid, addresses, start time."""
        ...

    async def engines(self) -> dict[tuple[str, str], Any]:
        """What each loaded version's engine is doing, by name and version, JSON-ready."""
        ...

    def stop(self, *, drain: bool) -> None:
        """Begin to stop and return at once; without ``drain`` running requests are cut off."""
        ...


class Management:
    def __init__(self, service: Service, control: DaemonControl) -> None:
        self._service = service
        self._control = control

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/status", self.status, methods=["GET"]),
            Route("/stop", self.stop, methods=["POST"]),
        ]

    async def status(self, _: Request) -> Response:
        """What ``daemon status --json`` prints."""
        engines = await self._control.engines()
        models = [
            msgspec.to_builtins(status) | {"stats": engines.get((status.name, status.version))}
            for status in self._service.models()
        ]
        answer = {
            **self._control.status(),
            "live": self._service.live(),
            "ready": self._service.ready(),
            "models": models,
        }
        return bodies.json_response(answer)

    async def stop(self, request: Request) -> Response:
        """Stop the daemon; ``?drain=false`` cuts running requests off."""
        drain = request.query_params.get("drain", "true").lower() not in ("false", "0", "no")
        self._control.stop(drain=drain)
        return bodies.json_response({"stopping": True, "drain": drain}, 202)
