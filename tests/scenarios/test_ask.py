"""One model, every way to ask it: curl's body, the client, openai, tritonclient, huggingface_hub."""

from __future__ import annotations

import json
import queue
from typing import Any

import httpx2
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2
from tritonclient.http import InferenceServerClient as HttpInferenceServerClient
from tritonclient.http import InferInput as HttpInferInput

from tests.scenarios.conftest import MODEL
from tests.scenarios.terminal import RunningDaemon, run

QUESTION = "生抽与老抽的区别？"


def chat(daemon: RunningDaemon, question: str, **options: Any) -> str:
    with OpenAI(base_url=f"{daemon.http}/v1", api_key="none", max_retries=0) as openai:
        answer = openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], temperature=0, **options
        )
    return answer.choices[0].message.content or ""


def test_the_curl_of_the_mindie_guide(daemon: RunningDaemon) -> None:
    body = {
        "inputs": QUESTION,
        "parameters": {"do_sample": False, "max_new_tokens": 512},
        "stream": False,
    }
    response = httpx2.post(f"{daemon.http}/generate", json=body, timeout=60)
    assert response.status_code == 200
    assert set(response.json()) == {"generated_text"}
    assert "老抽" in response.json()["generated_text"]


def test_client_over_http_and_grpc_gives_one_answer(daemon: RunningDaemon) -> None:
    options = ("-m", MODEL, QUESTION, "--temperature", "0", "--stream")
    over_http = run("client", "generate", "--http", daemon.http, *options)
    over_grpc = run("client", "generate", "--grpc", daemon.grpc, *options)
    assert over_http.code == 0, over_http.err
    assert over_grpc.code == 0, over_grpc.err
    assert over_http.out == over_grpc.out
    assert "老抽" in over_http.out


def test_openai_streams_what_it_answers(daemon: RunningDaemon) -> None:
    whole = chat(daemon, QUESTION)
    with OpenAI(base_url=f"{daemon.http}/v1", api_key="none", max_retries=0) as openai:
        chunks = openai.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        seen = list(chunks)
    pieces = [chunk.choices[0].delta.content or "" for chunk in seen if chunk.choices]
    assert len(pieces) > 3
    assert "".join(pieces) == whole
    assert seen[-1].usage is not None
    assert seen[-1].usage.completion_tokens > 3


@pytest.mark.parametrize(
    ("question", "expected"), [("法国的首都是哪里？", "巴黎"), ("What is the capital of Japan?", "Tokyo")]
)
def test_the_demo_model_knows(daemon: RunningDaemon, question: str, expected: str) -> None:
    assert expected in chat(daemon, question)


def test_completions_echo_prompt_with_its_logprobs(daemon: RunningDaemon) -> None:
    with OpenAI(base_url=f"{daemon.http}/v1", api_key="none", max_retries=0) as openai:
        prompt = f"<_start><_user>{QUESTION}<_bot>"
        answer = openai.completions.create(
            model=MODEL, prompt=prompt, max_tokens=4, temperature=0, echo=True, logprobs=2
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    values: list[float | None] = list(logprobs.token_logprobs)
    assert values[0] is None
    assert all(value is not None and value <= 0 for value in values[1:])
    assert answer.usage is not None
    assert len(values) == answer.usage.total_tokens


def inputs_of(kind: type[Any], **values: Any) -> list[Any]:
    """Tensors of one element, of the gRPC or the HTTP client's own class."""
    tensors = []
    for name, value in values.items():
        array = (
            np.array([value]) if isinstance(value, bool) else np.array([str(value).encode()], dtype=object)
        )
        tensor = kind(name, [1], "BOOL" if isinstance(value, bool) else "BYTES")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def test_tritonclient_streams_over_grpc(daemon: RunningDaemon) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with InferenceServerClient(daemon.grpc) as triton:
        assert triton.is_server_ready()
        assert triton.is_model_ready(MODEL)
        triton.start_stream(lambda result, error: answers.put((result, error)))
        triton.async_stream_infer(
            MODEL,
            inputs_of(
                InferInput,
                text_input=f"<_start><_user>{QUESTION}<_bot>",
                stream=True,
                sampling_parameters=json.dumps({"temperature": 0, "max_tokens": 64}),
            ),
            request_id="one",
            enable_empty_final_response=True,
        )
        text, final = "", False
        while not final:
            result, error = answers.get(timeout=60)
            assert error is None, error
            response: service_pb2.ModelInferResponse = result.get_response()
            final = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                text += result.as_numpy("text_output")[0].decode()
        triton.stop_stream()
    assert "老抽" in text


def test_tritonclient_infers_over_http(daemon: RunningDaemon) -> None:
    sampling = json.dumps({"max_tokens": 32})
    with HttpInferenceServerClient(daemon.http.removeprefix("http://")) as triton:
        inputs = inputs_of(HttpInferInput, text_input=QUESTION, sampling_parameters=sampling)
        result = triton.infer(MODEL, inputs)
    assert result.as_numpy("text_output")[0].decode().startswith(QUESTION)


def test_huggingface_client_streams(daemon: RunningDaemon) -> None:
    hub = InferenceClient(f"{daemon.http}")
    answer = hub.chat_completion(
        [{"role": "user", "content": "你是谁？"}], model=MODEL, max_tokens=64, temperature=0
    )
    assert answer.choices[0].message.content


def test_two_backends_in_one_daemon(daemon: RunningDaemon) -> None:
    models = {model["name"]: model for model in daemon.models()}
    assert models[MODEL]["backend"] == "ms"
    assert models["echo"]["backend"] == "mock"
    assert models[MODEL]["pid"] != models["echo"]["pid"]
    answer = run(
        "client", "generate", "--http", daemon.http, "-m", "echo", "--raw", "hello", "--max-tokens", "8"
    )
    assert answer.code == 0, answer.err


def test_an_unknown_model_is_named_with_those_there_are(daemon: RunningDaemon) -> None:
    answer = run("client", "generate", "--http", daemon.http, "-m", "nobody", "hello")
    assert answer.code == 4
    assert "nobody" in answer.err
    assert MODEL in answer.err


def test_metrics_count_requests(daemon: RunningDaemon) -> None:
    chat(daemon, "你好", max_tokens=4)
    text = httpx2.get(f"{daemon.info['metrics']}/metrics").text
    assert f'model="{MODEL}"' in text
    assert "nv_inference_request_success" in text
