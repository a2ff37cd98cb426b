"""The model repository extension: index, load, unload."""

from __future__ import annotations

from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import Response

from contract.faults import Fault, FaultKind
from daemon.http_api import bodies
from daemon.http_api.options import HttpOptions
from daemon.kserve import fields, metadata
from daemon.kserve.fields import Fields
from daemon.service.facade import Service


class IndexFields(Fields):
    ready: bool = False


class ControlFields(Fields):
    parameters: dict[str, Any] | None = None


class ControlParameters(Fields):
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"config": ()}

    unload_dependents: bool | None = None
    # Not Triton's: one version rather than the one that would be chosen.
    version: str | None = None


class Repository:
    def __init__(self, service: Service, options: HttpOptions, *, controls_models: bool) -> None:
        self._service = service
        self._options = options
        self._controls_models = controls_models

    async def index(self, request: Request) -> Response:
        asked = fields.parse(IndexFields, await bodies.read_object(request, self._options))
        return bodies.json_response(metadata.repository_index(self._service.models(), ready_only=asked.ready))

    async def load(self, request: Request) -> Response:
        # Not watched: a load goes on when the caller hangs up.
        name, version = await self._control(request)
        try:
            await self._service.load(name, version)
        except Fault as fault:
            verb = "failed to load '{}', {}" if fault.kind is FaultKind.NOT_FOUND else _LOAD_FAILED
            raise Fault(fault.kind, verb.format(name, fault.message), fault.hint, fault.details) from None
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        name, version = await self._control(request)
        try:
            await self._service.unload(name, version)
        except Fault as fault:
            # Unloading what does not exist changes nothing, as in Triton.
            if fault.kind is not FaultKind.NOT_FOUND:
                raise
        return Response(status_code=200)

    async def _control(self, request: Request) -> tuple[str, str]:
        if not self._controls_models:
            message = "This API is restricted: models are loaded and unloaded on the management port"
            hint = "ask that port, 1026 unless it was set; restrict_model_control is what forbids it here"
            raise Fault(FaultKind.FORBIDDEN, message, hint)
        body = fields.parse(ControlFields, await bodies.read_object(request, self._options))
        given = body.parameters or {}
        if any(name.startswith("file:") for name in given):
            message = "parameters: files cannot be sent with a load"
            raise Fault(FaultKind.UNSUPPORTED, message, "put the model into the repository")
        asked = fields.parse(ControlParameters, given, "parameters.")
        name, _, version = request.path_params["model"].partition("@")
        return name, asked.version or version


_LOAD_FAILED = "load failed for model '{}': {}"
