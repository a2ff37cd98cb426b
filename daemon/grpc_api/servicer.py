"""``inference.GRPCInferenceService``: every call of the protocol, with its name on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from contract.faults import Fault, FaultKind
from daemon.grpc_api.errors import abort, unexpected
from daemon.grpc_api.keys import caller_of
from daemon.grpc_api.options import GrpcOptions
from daemon.grpc_api.stream import InferStream
from daemon.grpc_api.unary import Unary
from daemon.service.facade import Service

SERVICE_NAME: str = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

Context: TypeAlias = grpc.aio.ServicerContext  # type: ignore[type-arg,unused-ignore]
Call: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]


def _answering(method: Callable[..., Awaitable[Any]], *, to_caller: bool = False) -> Call:
    """The call for a coroutine of ``Unary``, its faults as statuses. ``to_caller``: it asks who calls."""

    async def call(self: InferenceServicer, request: Any, context: Context) -> Any:
        try:
            return await method(self.unary, request, *([self.caller_of(context)] if to_caller else ()))
        except Fault as error:
            fault = error
        except Exception as error:
            fault = unexpected(method.__name__, error)
        return await abort(context, fault)

    return call


def _refusing(message: str, hint: str) -> Call:
    """The call for a part of the protocol that is not offered."""

    async def call(self: InferenceServicer, request: Any, context: Context) -> Any:
        await abort(context, Fault(FaultKind.UNSUPPORTED, message, hint))

    return call


_no_shared_memory = _refusing("shared memory is not offered by this server", "send the data in the request")
_no_trace = _refusing(
    "trace settings are not offered by this server", "set tracing up in the daemon's settings"
)
_no_log = _refusing("log settings are not offered by this server", "set logging up in the daemon's settings")


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The protocol on top of the service. ``stopping`` ends streams once their requests are answered."""

    def __init__(self, service: Service, options: GrpcOptions, stopping: asyncio.Event) -> None:
        self.unary = Unary(service, options)
        self._service = service
        self._stopping = stopping
        self._has_keys = bool(options.api_keys)

    def caller_of(self, context: Context) -> str:
        return caller_of(context, has_keys=self._has_keys)

    ServerLive = _answering(Unary.server_live)
    ServerReady = _answering(Unary.server_ready)
    ServerMetadata = _answering(Unary.server_metadata)
    ModelReady = _answering(Unary.model_ready)
    ModelMetadata = _answering(Unary.model_metadata)
    ModelConfig = _answering(Unary.model_config)
    ModelInfer = _answering(Unary.model_infer, to_caller=True)
    ModelStatistics = _answering(Unary.model_statistics)
    RepositoryIndex = _answering(Unary.repository_index)
    RepositoryModelLoad = _answering(Unary.repository_model_load)
    RepositoryModelUnload = _answering(Unary.repository_model_unload)

    async def _stream_infer(self, requests: AsyncIterator[Any], context: Context) -> None:
        try:
            caller = self.caller_of(context)
            await InferStream(self._service, context, self._stopping, caller).run(requests)
        except Fault as fault:
            await abort(context, fault)

    ModelStreamInfer = _stream_infer

    SystemSharedMemoryStatus = _no_shared_memory
    SystemSharedMemoryRegister = _no_shared_memory
    SystemSharedMemoryUnregister = _no_shared_memory
    CudaSharedMemoryStatus = _no_shared_memory
    CudaSharedMemoryRegister = _no_shared_memory
    CudaSharedMemoryUnregister = _no_shared_memory
    TraceSetting = _no_trace
    LogSettings = _no_log
