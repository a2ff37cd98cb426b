"""OpenAI's own client, unmodified, against the daemon's HTTP front."""

from __future__ import annotations

import hashlib

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.daemon.http_api.conftest import Serve
from tests.daemon.http_api.fake_service import FakeService

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "what a day"}]


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10)


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=9)
    assert answer.choices[0].message.content == "day a what"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6
    assert answer.model == "tiny"


def test_chat_streams_and_reports_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert "".join(texts) == "day a what"
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 3


def test_chat_reports_log_probabilities(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("day", -0.5, list(b"day"))
    assert [rival.token for rival in first.top_logprobs] == ["day", "day1"]


def test_several_answers_to_one_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"day a what"}


async def test_async_client_streams(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == "day a what"


def test_completion_of_several_prompts(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a b", "c d"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "b a"),
        (1, "b a"),
        (2, "d c"),
        (3, "d c"),
    ]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


@pytest.mark.parametrize("prompt", [[11, 12], [[11, 12]]])
def test_completion_of_token_ids(
    client: OpenAI, service: FakeService, prompt: list[int] | list[list[int]]
) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt)
    assert answer.choices[0].text == "12 11"
    assert service.requests[0].token_ids == [11, 12]


def test_echo_scores_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="a b", echo=True, logprobs=1, max_tokens=0)
    choice = answer.choices[0]
    assert choice.text == "a b"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", " b"]
    assert choice.logprobs.token_logprobs == [None, -0.5]
    assert choice.logprobs.text_offset == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_completion_stream_of_several_prompts(client: OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in client.completions.create(model="tiny", prompt=["a b", "c d"], stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "b a", 1: "d c"}


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@1", "tiny@2"]
    assert client.models.retrieve("tiny@1").id == "tiny@1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ("!context_overflow", openai.BadRequestError),
        ("!not_found", openai.NotFoundError),
        ("!overloaded", openai.RateLimitError),
        ("!forbidden", openai.PermissionDeniedError),
        ("!not_ready", openai.InternalServerError),
        ("!bug", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_faults_become_the_clients_errors(
    client: OpenAI, order: str, error: type[openai.APIStatusError], stream: bool
) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": order}]
    with pytest.raises(error) as caught:
        client.chat.completions.create(model="tiny", messages=messages, stream=stream)
    assert "secret" not in str(caught.value)


def test_context_overflow_has_openais_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="!context_overflow")
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("order", ["!after model_crashed and on", "!bug-after it began"])
def test_a_fault_in_mid_stream_reaches_the_client(client: OpenAI, order: str) -> None:
    stream = client.completions.create(model="tiny", prompt=order, stream=True)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert "secret" not in str(caught.value)


def test_wrong_key_is_an_authentication_error(serve: Serve) -> None:
    url = serve(api_keys=(hashlib.sha256(b"right").hexdigest(),))
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    assert OpenAI(base_url=f"{url}/v1", api_key="right", max_retries=0).models.list().data
