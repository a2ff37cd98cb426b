"""Server and model metadata, readiness, configuration, statistics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from contract.faults import Fault, FaultKind
from daemon.http_api import bodies
from daemon.http_api.dialects.triton.path import target_of
from daemon.http_api.errors import Family, response_of
from daemon.http_api.options import HttpOptions
from daemon.kserve import lookup, metadata
from daemon.repository.status import State
from daemon.service.facade import Service


class Models:
    def __init__(self, service: Service, options: HttpOptions) -> None:
        self._service = service
        self._options = options

    async def server(self, _: Request) -> Response:
        return bodies.json_response(metadata.server_metadata(self._options.version))

    async def live(self, _: Request) -> Response:
        return _health(self._service.live(), "the daemon is not live")

    async def ready(self, _: Request) -> Response:
        return _health(self._service.ready(), "the daemon is not ready")

    async def metadata(self, request: Request) -> Response:
        target = target_of(request)
        status = lookup.find(self._service, target.model, target.version)
        ready = [
            other.version
            for other in self._service.models()
            if other.name == status.name and other.state is State.READY
        ]
        return bodies.json_response(metadata.model_metadata(status, ready))

    async def model_ready(self, request: Request) -> Response:
        target = target_of(request)
        try:
            self._service.find(target.model, target.version)
        except Fault as fault:
            # 400 whatever the reason: that is what clients of Triton look for. No key is needed to ask, so
            # nobody is told which models there are.
            hint = "" if fault.kind is FaultKind.NOT_FOUND else fault.hint
            details = Fault(fault.kind, f"Model version not ready: {fault.message}", hint)
            return response_of(Family.TRITON, details, 400)
        return Response(status_code=200)

    async def config(self, request: Request) -> Response:
        target = target_of(request)
        status = lookup.find(self._service, target.model, target.version)
        return bodies.json_response(metadata.model_config(status))

    async def all_statistics(self, _: Request) -> Response:
        return bodies.json_response({"model_stats": await self._service.statistics()})

    async def statistics(self, request: Request) -> Response:
        target = target_of(request)
        try:
            statistics = await self._service.statistics(target.model, target.version)
        except Fault as fault:
            if fault.kind is not FaultKind.NOT_FOUND:
                raise
            message = f"requested model '{target.model}' is not available: {fault.message}"
            return response_of(Family.TRITON, Fault(fault.kind, message, fault.hint), 400)
        return bodies.json_response({"model_stats": statistics})


def _health(healthy: bool, message: str) -> Response:
    if healthy:
        return Response(status_code=200)
    return response_of(Family.TRITON, Fault(FaultKind.NOT_READY, message))
