"""``ModelStreamInfer`` through tritonclient as published: what arrives, in which order, with which flags."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException

from daemon.grpc_api.errors import FAULT_TRAILER
from tests.daemon.grpc_api.running import RunningDaemon, running_daemon
from tests.daemon.grpc_api.test_unary import flag, text_input

LIMIT_S = 20
LONG = {"max_tokens": 400, "ignore_eos": True}


class Received:
    """What a tritonclient stream brings."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._queue.put((result, error))

    def next(self) -> tuple[Any, Any]:
        return self._queue.get(timeout=LIMIT_S)

    def empty(self) -> bool:
        return self._queue.empty()

    def response(self) -> Any:
        result, error = self.next()
        assert error is None, error
        return result.get_response()

    def texts(self) -> str:
        """All text up to the response that is final."""
        text = ""
        while True:
            result, error = self.next()
            assert error is None, error
            part = result.as_numpy("text_output")
            text += part[0].decode() if part is not None else ""
            if is_final(result.get_response()):
                return text


def is_final(response: Any) -> bool:
    return bool(response.parameters["triton_final_response"].bool_param)


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def stream(triton: InferenceServerClient, received: Received) -> Iterator[InferenceServerClient]:
    triton.start_stream(received)
    yield triton
    triton.stop_stream(cancel_requests=True)


def send(client: InferenceServerClient, model: str, request_id: str = "1", **options: Any) -> None:
    inputs = [text_input("Hello world"), flag("stream")]
    options.setdefault("parameters", {"max_tokens": 20})
    client.async_stream_infer(model, inputs, request_id=request_id, **options)


def test_deltas_then_nothing(stream: InferenceServerClient, received: Received) -> None:
    send(stream, "echo", "a", parameters={"max_tokens": 3, "return_finish_reason": True})
    responses = [received.response() for _ in range(3)]
    assert [response.id for response in responses] == ["a"] * 3
    assert not any(is_final(response) for response in responses)
    send(stream, "echo", "b", parameters={"max_tokens": 1})
    assert received.response().id == "b", "the empty final response comes only if it is asked for"


def test_empty_final_response(stream: InferenceServerClient, received: Received) -> None:
    send(stream, "echo", "a", enable_empty_final_response=True, parameters={"max_tokens": 2})
    responses = [received.response() for _ in range(3)]
    assert [is_final(response) for response in responses] == [False, False, True]
    last = responses[-1]
    assert (last.id, last.model_name, len(last.outputs)) == ("a", "echo", 0)


def test_answer_in_one_piece_is_final_itself(triton: InferenceServerClient, received: Received) -> None:
    triton.start_stream(received)
    inputs = [text_input("Hello"), flag("exclude_input_in_output")]
    triton.async_stream_infer("echo", inputs, enable_empty_final_response=True)
    response = received.response()
    assert is_final(response)
    assert len(response.outputs) == 1
    triton.stop_stream()
    assert received.empty()


def test_error_before_execution_is_a_message(stream: InferenceServerClient, received: Received) -> None:
    send(stream, "nobody", "lost")
    result, error = received.next()
    assert result is None
    assert "is not found" in str(error)
    send(stream, "echo", "b", enable_empty_final_response=True)
    assert received.texts().startswith("Hello"), "the stream goes on"


def test_errors_echo_the_id(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        before = list(stub.ModelStreamInfer(iter([raw_request("nobody", "lost")]), timeout=LIMIT_S))
        during = list(stub.ModelStreamInfer(iter([raw_request("failing", "broken")]), timeout=LIMIT_S))
    assert len(before) == 1
    assert before[0].infer_response == service_pb2.ModelInferResponse(id="lost")
    assert "KV cache is full" in during[-1].error_message
    assert during[-1].infer_response.id == "broken"
    assert is_final(during[-1].infer_response)
    assert during[0].infer_response.outputs, "text came before the error"


def test_fault_is_in_the_trailer(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([raw_request("failing", "x")]), timeout=LIMIT_S)
        list(call)
        assert FAULT_TRAILER in dict(call.trailing_metadata())
        assert call.code() is grpc.StatusCode.OK


def test_grpc_error_ends_the_call_with_a_status(daemon: RunningDaemon, received: Received) -> None:
    with InferenceServerClient(daemon.grpc_address) as client:
        client.start_stream(received, headers={"triton_grpc_error": "true"})
        send(client, "failing")
        received.response()
        _, error = received.next()
        assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert "KV cache is full" in error.message()
        client.stop_stream()
        # Once a stream has failed so, later ones must not hang.
        client.start_stream(received, headers={"triton_grpc_error": "true"})
        send(client, "nobody")
        _, error = received.next()
        assert "is not found" in str(error)
        send(client, "echo", enable_empty_final_response=True)
        assert received.texts()


def test_requests_interleave(
    daemon: RunningDaemon, stream: InferenceServerClient, received: Received
) -> None:
    send(stream, "slow", "slow", enable_empty_final_response=True, parameters={"max_tokens": 3})
    send(stream, "echo", "fast", enable_empty_final_response=True, parameters={"max_tokens": 3})
    ids: list[str] = []
    finals: list[str] = []
    while len(finals) < 2:
        response = received.response()
        ids.append(response.id)
        if is_final(response):
            finals.append(response.id)
            daemon.allow(10)
    assert finals == ["fast", "slow"]
    assert ids.count("slow") == ids.count("fast") == 4


def test_cancelling_the_stream_cancels_all_in_the_engine(daemon: RunningDaemon, received: Received) -> None:
    backend = daemon.backend("slow")
    with InferenceServerClient(daemon.grpc_address) as client:
        client.start_stream(received)
        send(client, "slow", "one", parameters=LONG)
        send(client, "slow", "two", parameters=LONG)
        daemon.wait_for(lambda: backend.running == 2)
        client.stop_stream(cancel_requests=True)
    daemon.wait_for(lambda: backend.running == 0)
    assert len(backend.closed) >= 2


def test_cancelling_one_infer_cancels_in_the_engine(daemon: RunningDaemon) -> None:
    backend = daemon.backend("slow")
    with InferenceServerClient(daemon.grpc_address) as client:
        call = client.async_infer("slow", [text_input("Hello")], lambda result, error: None, parameters=LONG)
        daemon.wait_for(lambda: backend.running == 1)
        call.cancel()
        daemon.wait_for(lambda: backend.running == 0)


def test_half_close_lets_the_answers_finish(daemon: RunningDaemon, received: Received) -> None:
    with InferenceServerClient(daemon.grpc_address) as client:
        client.start_stream(received)
        send(client, "slow", enable_empty_final_response=True, parameters={"max_tokens": 5})
        daemon.allow(100)
        client.stop_stream()
    assert received.texts()


def test_half_close_without_requests(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([]), timeout=LIMIT_S)
        assert list(call) == []
        assert call.code() is grpc.StatusCode.OK


async def test_tritonclient_aio(daemon: RunningDaemon) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": "echo",
            "inputs": [text_input("生抽与老抽"), flag("stream")],
            "request_id": "1",
            "parameters": {"max_tokens": 12},
            "enable_empty_final_response": True,
        }

    text = ""
    async with triton_aio.InferenceServerClient(daemon.grpc_address) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            part = result.as_numpy("text_output")
            text += part[0].decode() if part is not None else ""
    assert text.startswith("生抽")
    assert "\ufffd" not in text


async def test_tritonclient_aio_cancel(daemon: RunningDaemon) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "slow", "inputs": [text_input("Hello"), flag("stream")], "parameters": LONG}

    backend = daemon.backend("slow")
    async with triton_aio.InferenceServerClient(daemon.grpc_address) as client:
        responses = client.stream_infer(requests())
        daemon.allow(1)
        await anext(responses)
        responses.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read_all(responses)
    daemon.wait_for(lambda: backend.running == 0)


async def read_all(responses: AsyncIterator[Any]) -> None:
    async for _ in responses:
        pass


def test_large_messages_pass(triton: InferenceServerClient) -> None:
    """More than gRPC's own 4 MiB arrive, to be refused for what they are."""
    long = text_input("x" * 6_000_000, "sampling_parameters")
    with pytest.raises(InferenceServerException, match="not valid JSON") as caught:
        triton.infer("echo", [text_input("a"), long])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_stop_finishes_answers_and_lets_idle_streams_go(tmp_path: Path, received: Received) -> None:
    with (
        running_daemon(tmp_path / "own", ("slow",)) as daemon,
        InferenceServerClient(daemon.grpc_address) as client,
    ):
        client.start_stream(received)
        send(client, "slow", enable_empty_final_response=True, parameters={"max_tokens": 3})
        daemon.wait_for(lambda: daemon.backend("slow").running == 1)
        begun = time.monotonic()
        stopping = asyncio.run_coroutine_threadsafe(daemon.grpc.stop(15), daemon.loop)
        daemon.allow(10)
        assert received.texts()
        stopping.result(10)
        assert time.monotonic() - begun < 5
        client.stop_stream()


def raw_request(model: str, request_id: str) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    text.contents.bytes_contents.append(b"Hello world")
    stream = request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    stream.contents.bool_contents.append(True)
    return request
