"""The calls with one answer, through tritonclient as published."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    service_pb2,
    service_pb2_grpc,
)
from tritonclient.utils import InferenceServerException

from tests.daemon.grpc_api.running import RunningDaemon


def text_input(text: str, name: str = "text_input") -> InferInput:
    tensor = InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    return tensor


def flag(name: str, value: bool = True) -> InferInput:
    tensor = InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([value]))
    return tensor


def only_text() -> list[InferInput]:
    return [text_input("Hello world"), flag("exclude_input_in_output")]


def test_server_and_model_say_who_they_are(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("echo")
    assert triton.is_model_ready("echo", "1")
    assert triton.get_server_metadata().name == "mindport"
    metadata = triton.get_model_metadata("echo", as_json=True)
    assert metadata["name"] == "echo"
    assert {"name": "text_input", "datatype": "BYTES", "shape": ["1"]} in metadata["inputs"]
    config = triton.get_model_config("echo").config
    assert config.model_transaction_policy.decoupled


@pytest.mark.parametrize(("model", "version"), [("nobody", ""), ("echo", "9")])
def test_what_is_not_there_is_not_ready(triton: InferenceServerClient, model: str, version: str) -> None:
    assert not triton.is_model_ready(model, version)
    with pytest.raises(InferenceServerException, match="is not found") as caught:
        triton.get_model_metadata(model, version)
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_version_must_be_a_number(triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="failed to get model version") as caught:
        triton.is_model_ready("echo", "latest")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_infer_gathers_the_answer(triton: InferenceServerClient) -> None:
    inputs = [*only_text(), flag("return_finish_reason"), flag("return_num_output_tokens")]
    result = triton.infer("echo", inputs, request_id="abc", parameters={"max_tokens": 100})
    assert result.as_numpy("text_output")[0].decode() == "Hello world"
    assert result.as_numpy("finish_reason")[0] == b"stop"
    assert result.as_numpy("num_output_tokens")[0] > 1
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("abc", "echo", "1")


def test_prompt_stands_before_the_answer_unless_excluded(triton: InferenceServerClient) -> None:
    result = triton.infer("echo", [text_input("Hello")])
    assert result.as_numpy("text_output")[0].decode().startswith("HelloHello")


def test_infer_takes_a_chat(triton: InferenceServerClient) -> None:
    chat = text_input('[{"role": "user", "content": "你好"}]', "messages")
    result = triton.infer("echo", [chat, text_input('{"max_tokens": 50}', "sampling_parameters")])
    assert "你好" in result.as_numpy("text_output")[0].decode()


def test_no_model_name_means_the_default_model(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest()
        entry = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        entry.contents.bytes_contents.append(b"Hello")
        assert stub.ModelInfer(request).model_name == "echo"


def test_only_requested_outputs_come(triton: InferenceServerClient) -> None:
    inputs = [*only_text(), flag("return_finish_reason")]
    result = triton.infer("echo", inputs, outputs=[InferRequestedOutput("finish_reason")])
    assert result.as_numpy("text_output") is None
    assert result.as_numpy("finish_reason")[0] in {b"stop", b"length"}
    with pytest.raises(InferenceServerException, match="unexpected inference output 'nonsense'"):
        triton.infer("echo", inputs, outputs=[InferRequestedOutput("nonsense")])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "missing required"),
        ([text_input("a"), text_input("b", "nonsense")], "unexpected inference input 'nonsense'"),
        ([flag("text_input")], "data-type is 'BOOL'"),
        ([text_input("a"), text_input("{", "sampling_parameters")], "not valid JSON"),
    ],
)
def test_wrong_inputs_are_named(triton: InferenceServerClient, inputs: list[InferInput], words: str) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        triton.infer("echo", inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_raw_and_typed_contents_exclude_each_other(daemon: RunningDaemon) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="echo")
        entry = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        entry.contents.bytes_contents.append(b"a")
        request.raw_input_contents.append(b"\x01\0\0\0a")
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_engine_failure_is_a_status(triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="KV cache is full") as caught:
        triton.infer("failing", only_text())
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_index_lists_every_version(triton: InferenceServerClient) -> None:
    index = triton.get_model_repository_index()
    assert {(entry.name, entry.version, entry.state) for entry in index.models} >= {("echo", "1", "READY")}
    assert service_pb2.DESCRIPTOR.package == "inference"


def test_load_and_unload(triton: InferenceServerClient) -> None:
    triton.unload_model("crashing")
    assert not triton.is_model_ready("crashing")
    triton.load_model("crashing")
    assert triton.is_model_ready("crashing")
    triton.unload_model("nobody")
    with pytest.raises(InferenceServerException, match="failed to load 'nobody'"):
        triton.load_model("nobody")
    with pytest.raises(InferenceServerException, match="'config' is not supported"):
        triton.load_model("echo", config="{}")


def test_statistics(triton: InferenceServerClient) -> None:
    triton.infer("echo", only_text())
    statistics = triton.get_inference_statistics("echo")
    assert statistics.model_stats[0].name == "echo"
    with pytest.raises(InferenceServerException, match="requested model 'nobody' is not available") as caught:
        triton.get_inference_statistics("nobody")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_rest_is_refused_with_a_sentence(triton: InferenceServerClient) -> None:
    for call in (
        triton.get_system_shared_memory_status,
        triton.get_cuda_shared_memory_status,
        triton.get_trace_settings,
        triton.get_log_settings,
    ):
        with pytest.raises(InferenceServerException, match="not offered") as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_long_messages_fit_into_the_metadata(triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"is not found|很") as caught:
        triton.infer("很" * 5000, only_text())
    assert caught.value.status() == "StatusCode.NOT_FOUND"
