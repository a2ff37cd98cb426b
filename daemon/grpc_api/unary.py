"""The calls with one request and one answer: message in, message out, ``Fault`` raised."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

from contract.faults import Fault, FaultKind
from daemon.grpc_api.inference import accept, check_version, collected, find
from daemon.grpc_api.messages import infer_response
from daemon.grpc_api.options import GrpcOptions
from daemon.kserve import lookup, metadata
from daemon.service.facade import Service

_HARMLESS_PARAMETERS = frozenset(("unload_dependents",))


class Unary:
    """One method for each call that a text model needs; ``servicer`` gives them their names on the wire."""

    def __init__(self, service: Service, options: GrpcOptions) -> None:
        self._service = service
        self._options = options

    async def server_live(self, request: Any) -> Any:
        return pb.ServerLiveResponse(live=self._service.live())

    async def server_ready(self, request: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._service.ready())

    async def server_metadata(self, request: Any) -> Any:
        return pb.ServerMetadataResponse(**metadata.server_metadata(self._options.version))

    async def model_ready(self, request: Any) -> Any:
        """Not being ready, or not being there, is an answer and no error."""
        check_version(request.name, request.version)
        try:
            find(self._service, request.name, request.version)
        except Fault:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def model_metadata(self, request: Any) -> Any:
        status = find(self._service, request.name, request.version)
        return pb.ModelMetadataResponse(**metadata.model_metadata(status))

    async def model_config(self, request: Any) -> Any:
        check_version(request.name, request.version)
        status = lookup.find_any(self._service, request.name, request.version)
        return pb.ModelConfigResponse(config=metadata.model_config_proto(status))

    async def model_infer(self, request: Any, caller: str) -> Any:
        """A language model's answer arrives in pieces; here they are gathered into one."""
        inference = accept(self._service, request, caller)
        return infer_response(await collected(self._service, inference), request)

    async def model_statistics(self, request: Any) -> Any:
        check_version(request.name, request.version)
        try:
            statistics = await self._service.statistics(request.name, request.version)
        except Fault as fault:
            if fault.kind is not FaultKind.NOT_FOUND:
                raise
            # Triton's code and words for it.
            message = f"requested model '{request.name}' is not available: {fault.message}"
            raise Fault(FaultKind.INVALID_REQUEST, message, fault.hint) from None
        return json_format.ParseDict(
            {"model_stats": statistics}, pb.ModelStatisticsResponse(), ignore_unknown_fields=True
        )

    async def repository_index(self, request: Any) -> Any:
        _refuse_named_repository(request.repository_name)
        entries = metadata.repository_index(self._service.models(), ready_only=request.ready)
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in entries]
        )

    async def repository_model_load(self, request: Any) -> Any:
        self._check_control(request)
        try:
            await self._service.load(request.model_name)
        except Fault as fault:
            message = f"failed to load '{request.model_name}': {fault.message}"
            raise Fault(fault.kind, message, fault.hint, fault.details) from None
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(self, request: Any) -> Any:
        """Unloading what is not loaded does nothing, as in Triton."""
        self._check_control(request)
        try:
            await self._service.unload(request.model_name)
        except Fault as fault:
            if fault.kind is not FaultKind.NOT_FOUND:
                raise
        return pb.RepositoryModelUnloadResponse()

    def _check_control(self, request: Any) -> None:
        _refuse_named_repository(request.repository_name)
        if self._options.restrict_model_control:
            hint = "use the management port, or: daemon load MODEL"
            raise Fault(FaultKind.FORBIDDEN, "models are not loaded or unloaded on this port", hint)
        unknown = sorted(set(request.parameters) - _HARMLESS_PARAMETERS)
        if unknown:
            message = f"the parameter '{unknown[0]}' is not supported: a model is loaded as it was packaged"
            raise Fault(FaultKind.INVALID_REQUEST, message, "package another version with: builder package")


def _refuse_named_repository(name: str) -> None:
    if name:
        message = f"'repository_name' is not supported, the server has one repository: '{name}'"
        raise Fault(FaultKind.UNSUPPORTED, message, "leave it out")
