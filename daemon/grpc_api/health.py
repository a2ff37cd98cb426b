"""``grpc.health.v1.Health``: the whole server under the empty name, each model under its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.faults import Fault, FaultKind
from daemon.grpc_api.errors import abort
from daemon.repository.status import ModelStatus
from daemon.service.facade import Service

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_SERVING: int = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers from the service's state as it is now; ``Watch`` looks for changes from time to time."""

    def __init__(
        self, service: Service, inference_name: str, *, stopping: asyncio.Event, poll_s: float
    ) -> None:
        self._service = service
        self._server_names = ("", inference_name)
        self._stopping = stopping
        self._poll_s = poll_s

    async def check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        status = self._status(request.service)
        if status == _UNKNOWN:
            names = sorted({model.name for model in self._service.models()})
            hint = f"the models are: {', '.join(names)}" if names else ""
            await abort(context, Fault(FaultKind.NOT_FOUND, f"unknown service '{request.service}'", hint))
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[Any, None]:
        told: int | None = None
        while not self._stopping.is_set():
            status = self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await _set_within(self._stopping, self._poll_s)
        if told != _NOT_SERVING:
            yield health_pb2.HealthCheckResponse(status=_NOT_SERVING)

    Check = check
    Watch = watch

    def _status(self, name: str) -> int:
        if name in self._server_names:
            return _NOT_SERVING if self._stopping.is_set() or not self._service.ready() else _SERVING
        model, _, version = name.partition("@")
        if not any(_is_named(status, model, version) for status in self._service.models()):
            return _UNKNOWN
        try:
            self._service.find(model, version)
        except Fault:
            return _NOT_SERVING
        return _NOT_SERVING if self._stopping.is_set() else _SERVING


def _is_named(status: ModelStatus, model: str, version: str) -> bool:
    return status.name == model and version in {"", status.version}


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
