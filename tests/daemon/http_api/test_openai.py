"""Bodies of the OpenAI dialect: what is refused, what passes, what the bytes look like."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.daemon.http_api.fake_service import FakeService

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "a b"}]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop.0"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"best_of": 2}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages"),
        ({"messages": []}, "messages"),
        ({"messages": ["a"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a", "contents": "b"}]}, "messages.0.contents"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.0.content.0"),
    ],
)
def test_a_clients_mistake_is_named(http: httpx2.Client, extra: dict[str, Any], param: str) -> None:
    answer = http.post(CHAT, json={"messages": HELLO, **extra})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"


def test_the_nearest_field_is_suggested(http: httpx2.Client) -> None:
    answer = http.post(CHAT, json={"messages": HELLO, "max_token": 5})
    assert "did you mean 'max_tokens'?" in answer.json()["error"]["message"]


def test_values_that_ask_for_nothing_pass(http: httpx2.Client) -> None:
    neutral = {
        "best_of": 1,
        "length_penalty": 1,
        "logit_bias": {},
        "min_p": 0,
        "response_format": {"type": "text"},
        "seed": None,
        "store": False,
        "tool_choice": "auto",
        "user": "somebody",
        "metadata": {"a": "b"},
    }
    assert http.post(CHAT, json={"messages": HELLO, **neutral}).status_code == 200


def test_tools_and_template_options_reach_the_template(http: httpx2.Client, service: FakeService) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    body = {"messages": HELLO, "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    assert http.post(CHAT, json=body).status_code == 200
    assert http.post(CHAT, json={**body, "tool_choice": "none"}).status_code == 200
    assert [request.template_options for request in service.requests] == [
        {"tools": tools, "enable_thinking": False},
        {"enable_thinking": False},
    ]


def test_a_conversation_with_tool_calls(http: httpx2.Client, service: FakeService) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "when"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {
            "role": "tool",
            "content": [{"type": "text", "text": "at "}, {"type": "text", "text": "noon"}],
            "tool_call_id": "1",
        },
    ]
    assert http.post(CHAT, json={"messages": messages}).status_code == 200
    _, asked, told = service.requests[0].messages or []
    assert (asked.content, asked.tool_calls) == ("", [call])
    assert (told.content, told.tool_call_id) == ("at noon", "1")


def test_empty_content_is_a_prompt(http: httpx2.Client) -> None:
    assert http.post(CHAT, json={"messages": [{"role": "user", "content": ""}]}).status_code == 200


def test_stream_bytes(http: httpx2.Client) -> None:
    answer = http.post(CHAT, json={"messages": HELLO, "stream": True}, headers={"X-Request-ID": "r1"})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-r1"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "b"},
        {"content": " a"},
        {},
    ]


def test_a_fault_in_mid_stream_is_the_last_event(http: httpx2.Client) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": "!after model_crashed x y", "stream": True})
    *_, last, rest = answer.text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_crashed"
    assert rest == ""


@pytest.mark.parametrize(
    "prompt", [None, 5, [], [[]], [["a"]], ["a", 5], [-1], [True], {"text": "a"}, [[1], "a", None]]
)
def test_wrong_prompts(http: httpx2.Client, prompt: Any) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": prompt})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("prompt")


@pytest.mark.parametrize("extra", [{"suffix": "x"}, {"max_tokens": 0}, {"echo": 1}, {"logprobs": 21}])
def test_wrong_completions(http: httpx2.Client, extra: dict[str, Any]) -> None:
    assert http.post(COMPLETIONS, json={"prompt": "a", **extra}).status_code == 400


def test_one_failing_prompt_fails_the_call(http: httpx2.Client) -> None:
    assert http.post(COMPLETIONS, json={"prompt": ["a", "!overloaded"]}).status_code == 429


def test_more_prompts_than_run_at_once(http: httpx2.Client) -> None:
    prompts = [f"{number} x" for number in range(100)]
    answer = http.post(COMPLETIONS, json={"prompt": prompts}).json()
    assert [choice["text"] for choice in answer["choices"]] == [f"x {number}" for number in range(100)]


def test_stream_of_an_echo_with_log_probabilities(http: httpx2.Client) -> None:
    body = {"prompt": "a b", "echo": True, "logprobs": 1, "stream": True, "max_tokens": 1}
    events = http.post(COMPLETIONS, json=body).text.split("\n\n")[:-2]
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert [choice["text"] for choice in choices] == ["a b", "b", ""]
    offsets = [choice["logprobs"]["text_offset"] for choice in choices]
    assert offsets == [[0, 1], [3], []]
    assert choices[-1]["finish_reason"] == "length"


def test_the_chat_takes_the_newer_limit(http: httpx2.Client, service: FakeService) -> None:
    http.post(CHAT, json={"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 3})
    assert service.requests[0].sampling.max_tokens == 3
    assert service.requests[0].default_max_tokens is None
