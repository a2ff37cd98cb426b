"""Health, reflection, keys and ports."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from contract.faults import Fault, FaultKind
from daemon.grpc_api.options import GrpcOptions
from daemon.grpc_api.server import start_grpc
from tests.daemon.grpc_api.running import RunningDaemon, running_daemon
from tests.daemon.grpc_api.test_unary import text_input

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def health(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("name", ["", "inference.GRPCInferenceService", "echo", "echo@1"])
def test_health_check(daemon: RunningDaemon, name: str) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        assert health(channel).Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING


@pytest.mark.parametrize("name", ["nobody", "echo@7"])
def test_health_check_of_an_unknown_service(daemon: RunningDaemon, name: str) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health(channel).Check(health_pb2.HealthCheckRequest(service=name))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_tells_each_change(tmp_path: Path) -> None:
    told: queue.Queue[int] = queue.Queue()

    def watch(channel: grpc.Channel, name: str) -> None:
        for response in health(channel).Watch(health_pb2.HealthCheckRequest(service=name)):
            told.put(response.status)

    with (
        running_daemon(tmp_path / "own", ("echo",)) as daemon,
        grpc.insecure_channel(daemon.grpc_address) as channel,
    ):
        unknown = next(health(channel).Watch(health_pb2.HealthCheckRequest(service="nobody")))
        assert unknown.status == SERVICE_UNKNOWN
        thread = threading.Thread(target=watch, args=(channel, "echo"))
        thread.start()
        assert told.get(timeout=10) == SERVING
        daemon.on_loop(daemon.service.unload("echo"))
        assert told.get(timeout=10) == NOT_SERVING
        daemon.on_loop(daemon.service.load("echo"))
        assert told.get(timeout=10) == SERVING
        daemon.on_loop(daemon.grpc.stop(5))
        assert told.get(timeout=10) == NOT_SERVING
        thread.join(10)
        assert not thread.is_alive(), "the watch ends with the server"


def test_reflection_describes_the_protocol(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        found = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    assert "ModelStreamInfer" in {method.name for method in found.service[0].method}


def test_keys(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret-key").hexdigest()
    with running_daemon(tmp_path / "own", ("echo",), api_keys=(digest,)) as daemon:
        client = InferenceServerClient(daemon.grpc_address)
        assert client.is_server_ready(), "probes need no key"
        assert client.is_model_ready("echo")
        for headers in (None, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
            with pytest.raises(InferenceServerException, match="API key") as caught:
                client.get_model_metadata("echo", headers=headers)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        for headers in ({"authorization": "Bearer secret-key"}, {"x-api-key": "secret-key"}):
            assert client.get_model_metadata("echo", headers=headers).name == "echo"
        with grpc.insecure_channel(daemon.grpc_address) as channel:
            assert health(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
        client.close()


def test_caller_and_priority(tmp_path: Path) -> None:
    known = hashlib.sha256(b"secret-key").hexdigest()
    with (
        running_daemon(tmp_path / "own", ("echo",), api_keys=(known,)) as keyed,
        InferenceServerClient(keyed.grpc_address) as client,
    ):
        headers = {"x-api-key": "secret-key"}
        client.infer("echo", [text_input("a")], priority=1, headers=headers)
        (asked,) = keyed.backend("echo").requests
        assert (asked.priority, asked.caller) == (-4, known)
    with running_daemon(tmp_path / "open", ("echo",)) as open_daemon:
        with InferenceServerClient(open_daemon.grpc_address) as client:
            client.infer("echo", [text_input("a")])
        (asked,) = open_daemon.backend("echo").requests
        assert (asked.priority, asked.caller) == (0, "127.0.0.1")


def test_model_control_can_be_restricted(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path / "own", ("echo",), restrict_model_control=True) as daemon,
        InferenceServerClient(daemon.grpc_address) as client,
        pytest.raises(InferenceServerException, match="on this port") as caught,
    ):
        client.unload_model("echo")
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


def test_port_that_is_taken_is_a_fault(daemon: RunningDaemon) -> None:
    async def start() -> None:
        await start_grpc(daemon.service, GrpcOptions(port=daemon.grpc.port))

    with pytest.raises(Fault, match="cannot be had") as caught:
        asyncio.run(start())
    assert caught.value.kind is FaultKind.START_FAILED
