"""The gRPC server: built, bound, started, and stopped without cutting off what is under way."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2_grpc

from contract.faults import Fault, FaultKind
from daemon.grpc_api import health, servicer
from daemon.grpc_api.health import HealthServicer
from daemon.grpc_api.keys import KeyInterceptor
from daemon.grpc_api.options import GrpcOptions
from daemon.grpc_api.servicer import InferenceServicer
from daemon.service.facade import Service

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A second daemon on the port must fail instead of taking half of the requests.
    ("grpc.so_reuseport", 0),
    # A client that vanished without a word is noticed, and its requests cancelled.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Clients may ping as often as gRPC's own guide proposes.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class GrpcServer:
    """A running server; ``start_grpc`` makes it."""

    def __init__(self, server: grpc.aio.Server, host: str, port: int, stopping: asyncio.Event) -> None:
        self.host = host
        self.port = port
        """The port it is bound to, also where the options said 0."""
        self._server = server
        self._stopping = stopping

    async def stop(self, grace_s: float) -> None:
        """Take nothing more on, give what is under way ``grace_s`` to end, then cancel it.

        Called again with less grace, it cuts the first call short.
        """
        self._stopping.set()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()


async def start_grpc(service: Service, options: GrpcOptions) -> GrpcServer:
    """Bind and serve. Raises ``Fault`` (START_FAILED) if the address cannot be had."""
    stopping = asyncio.Event()
    interceptors = (KeyInterceptor(options.api_keys),) if options.api_keys else ()
    server = grpc.aio.server(options=_CHANNEL_OPTIONS, interceptors=interceptors)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
        InferenceServicer(service, options, stopping), server
    )
    watcher = HealthServicer(service, servicer.SERVICE_NAME, stopping=stopping, poll_s=options.health_poll_s)
    health_pb2_grpc.add_HealthServicer_to_server(watcher, server)
    names = (servicer.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    port = _bind(server, options)
    await server.start()
    return GrpcServer(server, options.host, port, stopping)


def _bind(server: Any, options: GrpcOptions) -> int:
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        port = int(server.add_insecure_port(f"{host}:{options.port}"))
    except RuntimeError as error:
        port, reason = 0, f": {error}"
    else:
        reason = ""
    if port == 0:
        message = f"the gRPC address {host}:{options.port} cannot be had{reason}"
        hint = "choose another with --grpc-port, 0 takes a free one"
        raise Fault(FaultKind.START_FAILED, message, hint)
    return port
