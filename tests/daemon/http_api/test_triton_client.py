"""tritonclient, unmodified, against the daemon's HTTP front."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

pytest.importorskip("gevent")

from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from tests.daemon.http_api.fake_service import FakeService


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    yield client
    client.close()


def text_input(text: str, *, binary: bool = True) -> Any:
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_), binary_data=binary)
    return tensor


def flag(name: str) -> Any:
    tensor = triton.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([True]))
    return tensor


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("torn")
    assert not client.is_model_ready("absent")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny")
    assert metadata["versions"] == ["1", "2"]
    assert {"name": "text_input", "datatype": "BYTES", "shape": [1]} in metadata["inputs"]
    assert {"name": "text_output", "datatype": "BYTES", "shape": [-1]} in metadata["outputs"]


def test_configuration(client: Any) -> None:
    config = client.get_model_config("tiny")
    assert config["backend"] == "mock"
    assert config["max_batch_size"] == 0
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert config["input"][0]["data_type"] == "TYPE_STRING"
    assert config["input"][0]["dims"] == [1]


def test_statistics(client: Any) -> None:
    assert client.get_inference_statistics("tiny")["model_stats"][0]["name"] == "tiny"
    assert client.get_inference_statistics()["model_stats"]
    with pytest.raises(InferenceServerException, match="requested model 'absent' is not available") as caught:
        client.get_inference_statistics("absent")
    assert caught.value.status() == "400"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
def test_infer(client: Any, binary: bool, encoding: str | None) -> None:
    result = client.infer(
        "tiny",
        [text_input("a b c", binary=binary), flag("exclude_input_in_output"), flag("return_finish_reason")],
        request_id="mine",
        outputs=[
            triton.InferRequestedOutput("text_output", binary_data=binary),
            triton.InferRequestedOutput("num_output_tokens", binary_data=binary),
        ],
        request_compression_algorithm=encoding,
        response_compression_algorithm=encoding,
    )
    assert result.as_numpy("text_output").tolist() == ([b"c b a"] if binary else ["c b a"])
    assert result.as_numpy("num_output_tokens").tolist() == [4]
    assert result.as_numpy("finish_reason") is None
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["model_version"] == "2"


def test_infer_gives_everything_asked_for(client: Any) -> None:
    flags = (
        "return_finish_reason",
        "return_cumulative_logprob",
        "return_logprobs",
        "return_num_input_tokens",
        "return_num_output_tokens",
    )
    result = client.infer("tiny", [text_input("a b"), *(flag(name) for name in flags)], model_version="1")
    assert result.as_numpy("text_output").tolist() == [b"a bb a"]
    assert result.as_numpy("finish_reason").tolist() == [b"stop"]
    assert result.as_numpy("cumulative_logprob").tolist() == [-1.0]
    assert result.as_numpy("num_input_tokens").tolist() == [2]
    assert result.as_numpy("num_output_tokens").tolist() == [3]
    alternatives = json.loads(result.as_numpy("logprobs")[0])
    assert len(alternatives) == 2
    assert next(iter(alternatives[0].values()))["decoded_token"] == "b"
    assert result.get_response()["model_version"] == "1"


def test_sampling_as_json_tensor_or_parameters(client: Any, service: FakeService) -> None:
    sampling = triton.InferInput("sampling_parameters", [1], "BYTES")
    asked = json.dumps({"temperature": "0", "max_tokens": "3", "stop": ["x"]})
    sampling.set_data_from_numpy(np.array([asked.encode()], dtype=np.object_))
    client.infer("tiny", [text_input("a b"), sampling])
    client.infer("tiny", [text_input("a b")], parameters={"temperature": "0", "max_tokens": 3, "stop": "x"})
    first, second = service.requests
    assert first.sampling == second.sampling
    assert (first.sampling.temperature, first.sampling.max_tokens, first.sampling.stop) == (0.0, 3, ("x",))


def test_priority_and_timeout_are_request_parameters(client: Any, service: FakeService) -> None:
    client.infer("tiny", [text_input("a")], priority=3, timeout=2_000_000)
    assert service.requests[0].priority == -2
    assert service.requests[0].timeout_s == 2.0


@pytest.mark.parametrize(
    ("model", "version", "status", "text"),
    [
        ("absent", "", "404", "Request for unknown model: 'absent' is not found"),
        ("tiny", "9", "404", "'tiny' version 9 is not found"),
        ("torn", "", "404", "has no available versions"),
        ("torn", "1", "503", "version 1 is not at ready state"),
    ],
)
def test_absent_models(client: Any, model: str, version: str, status: str, text: str) -> None:
    with pytest.raises(InferenceServerException, match=text) as caught:
        client.infer(model, [text_input("a")], model_version=version)
    assert caught.value.status() == status


def test_wrong_tensors(client: Any) -> None:
    wrong = triton.InferInput("text_input", [1], "INT32")
    wrong.set_data_from_numpy(np.array([1], dtype=np.int32))
    with pytest.raises(InferenceServerException, match="'INT32', but model 'tiny' expects 'BYTES'"):
        client.infer("tiny", [wrong])
    with pytest.raises(InferenceServerException, match="unexpected inference input 'exclude'"):
        client.infer("tiny", [text_input("a"), flag("exclude")])
    with pytest.raises(InferenceServerException, match="missing required input"):
        client.infer("tiny", [flag("stream")])
    two = triton.InferInput("text_input", [2], "BYTES")
    two.set_data_from_numpy(np.array([b"a", b"b"], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'text_input'"):
        client.infer("tiny", [two])
    with pytest.raises(InferenceServerException, match="unexpected inference output 'other'"):
        client.infer("tiny", [text_input("a")], outputs=[triton.InferRequestedOutput("other")])


def test_faults_have_their_status(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("tiny", [text_input("!overloaded")])
    assert caught.value.status() == "429"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("tiny", [text_input("a")], sequence_id=7)
    assert caught.value.status() == "501"


def test_repository(client: Any, service: FakeService) -> None:
    index = client.get_model_repository_index()
    assert {"name": "other"} in index
    assert {"name": "tiny", "version": "2", "state": "READY", "reason": ""} in index
    torn = {"name": "torn", "version": "1", "state": "UNAVAILABLE", "reason": "weights are missing"}
    assert torn in index
    client.load_model("tiny")
    client.unload_model("tiny", unload_dependents=True)
    client.unload_model("absent")
    assert service.controlled == [("load", "tiny", ""), ("unload", "tiny", "")]
    with pytest.raises(InferenceServerException, match="failed to load 'absent'"):
        client.load_model("absent")
    with pytest.raises(InferenceServerException, match="load failed for model 'torn': weights are missing"):
        client.load_model("torn")
    with pytest.raises(InferenceServerException, match="config"):
        client.load_model("tiny", config='{"max_batch_size": 4}')


def test_what_is_not_offered_says_so(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.get_log_settings()
    assert caught.value.status() == "501"
    with pytest.raises(InferenceServerException) as caught:
        client.get_system_shared_memory_status()
    assert caught.value.status() == "501"


def test_control_can_be_restricted(serve: Any, management_url: str) -> None:
    restricted = serve(restrict_model_control=True)
    refused = httpx2.post(f"{restricted}/v2/repository/models/tiny/load")
    assert refused.status_code == 403
    assert "restricted" in refused.json()["error"]
    assert httpx2.post(f"{management_url}/v2/repository/models/tiny/load").status_code == 200
