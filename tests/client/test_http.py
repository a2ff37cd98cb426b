"""What a server may do wrong or slowly over HTTP, and what the client makes of it."""

from __future__ import annotations

import json
import pickle

import pytest

from client import (
    AsyncClient,
    Client,
    ConnectError,
    ConnectionLostError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ProtocolError,
    ServerError,
)
from client.errors import ERROR_TYPES, ClientError
from client.http_errors import KINDS_OF_STATUS, error_of_body
from contract.faults import FaultKind
from tests.client.scripted import DONE, Reply, completion, event, scripted, streamed

BUSY = Reply(
    429,
    ('{"error": {"message": "the queue is full (try later)", "code": "overloaded"}}',),
    {"Retry-After": "0"},
)


def error_reply(status: int, body: str, **headers: str) -> Reply:
    return Reply(status, (body,), headers)


def test_request_on_the_wire() -> None:
    with scripted(completion()) as (url, server), Client(url, api_key="k") as client:
        client.generate("hi", model="m", temperature=0.0, stop="x", request_id="my-id")
        client.generate("hi", raw=True, max_tokens=5, include_stop=True, do_sample=False)
    assert server.bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": None,
        "temperature": 0.0,
        "stop": ["x"],
    }
    assert server.bodies[1] == {
        "prompt": "hi",
        "max_tokens": 5,
        "include_stop_str_in_output": True,
        "temperature": 0.0,
    }
    assert server.headers[0]["authorization"] == "Bearer k"
    assert server.headers[0]["x-request-id"] == "my-id"


def test_stream_with_line_separators_in_the_text() -> None:
    usage = event(usage={"prompt_tokens": 1, "completion_tokens": 3})
    reply = streamed(event("a\u2028b"), event("\x85"), event("你"), event(None, "stop"), usage, DONE)
    with scripted(reply) as (url, server), Client(url) as client:
        answer = client.stream("hi").answer()
    assert answer.text == "a\u2028b\x85你"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("streaming", [True, False])
def test_busy_server_is_asked_again(streaming: bool) -> None:
    good = streamed(event("hi", "stop"), DONE) if streaming else completion("hi")
    with scripted(BUSY, BUSY, good) as (url, server), Client(url) as client:
        answer = client.stream("x").answer() if streaming else client.generate("x")
    assert answer.text == "hi"
    assert len(server.bodies) == 3


def test_retries_are_bounded() -> None:
    with scripted(BUSY) as (url, server), Client(url, retries=1) as client:
        with pytest.raises(OverloadedError, match="the queue is full") as caught:
            client.generate("x")
        assert caught.value.hint == "try later"
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "reply",
    [
        error_reply(500, '{"error": {"message": "bug"}}', **{"Retry-After": "0"}),
        error_reply(
            503, '{"error": "the worker died"}', **{"Retry-After": "0", "X-Fault-Kind": "model_crashed"}
        ),
        error_reply(503, '{"error": "loading"}'),
        error_reply(400, '{"error": "bad"}'),
        error_reply(429, '{"error": "busy"}', **{"Retry-After": "3600"}),
        streamed(event("half")),
    ],
)
def test_what_may_have_begun_or_will_not_change_is_not_repeated(reply: Reply) -> None:
    with scripted(reply) as (url, server), Client(url) as client:
        with pytest.raises(ClientError):
            client.stream("x").answer()
        assert len(server.bodies) == 1


def test_nobody_there() -> None:
    with Client("http://127.0.0.1:9", retries=1) as client, pytest.raises(ConnectError) as caught:
        client.generate("x")
    assert caught.value.exit_code == 5
    assert "daemon start" in caught.value.hint


def test_stream_that_breaks_off() -> None:
    with scripted(streamed(event("half"))) as (url, _), Client(url) as client:
        stream = client.stream("x")
        assert next(stream).text == "half"
        with pytest.raises(ConnectionLostError, match="before the answer was complete"):
            next(stream)


def test_error_inside_a_stream() -> None:
    error = 'data: {"error": {"message": "no memory (stop others)", "code": "out_of_memory"}}\n\n'
    with scripted(streamed(event("half"), error)) as (url, _), Client(url) as client:
        with pytest.raises(ServerError, match="no memory") as caught:
            client.stream("x", request_id="r").answer()
        assert (caught.value.kind, caught.value.request_id) == (FaultKind.OUT_OF_MEMORY, "r")


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"choices": [3]}', '"text"'])
def test_answer_of_another_server(body: str) -> None:
    with scripted(Reply(parts=(body,))) as (url, _), Client(url) as client, pytest.raises(ProtocolError):
        client.generate("x")


def test_a_web_page_is_told_in_one_sentence() -> None:
    page = Reply(
        501, ("<!DOCTYPE HTML><html>\n<h1>Error</h1></html>",), {"Content-Type": "text/html;charset=utf-8"}
    )
    with scripted(page) as (url, _), Client(url) as client, pytest.raises(ClientError) as caught:
        client.generate("x")
    assert "answered 501" in caught.value.message
    assert "web page" in caught.value.message
    assert "<" not in caught.value.message
    assert "another program" in caught.value.hint


def test_closing_a_stream_closes_the_connection() -> None:
    with scripted(streamed(event("a"), hangs=True)) as (url, server), Client(url) as client:
        with client.stream("x") as stream:
            next(stream)
        assert server.closed_early.wait(10)


async def test_async_client() -> None:
    with scripted(streamed(event("a"), event("b", "length"), DONE)) as (url, _):
        async with AsyncClient(url) as client, client.stream("x") as stream:
            texts = [chunk.text async for chunk in stream]
            answer = await stream.answer()
    assert texts == ["a", "b"]
    assert answer.finish_reason == "length"


def test_logprobs() -> None:
    content = [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}]}]
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": content}}
    legacy = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5}]}
    raw_choice = {"text": "a", "finish_reason": "stop", "logprobs": legacy}
    replies = [Reply(parts=(json.dumps({"choices": [each]}),)) for each in (choice, raw_choice)]
    with scripted(*replies) as (url, server), Client(url) as client:
        chat = client.generate("x", logprobs=1)
        raw = client.generate("x", logprobs=1, raw=True)
    assert chat.logprobs == raw.logprobs
    assert chat.logprobs[0].top == (("b", -1.5),)
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 1)
    assert server.bodies[1]["logprobs"] == 1


@pytest.mark.parametrize(
    ("status", "body", "kind", "message", "hint"),
    [
        (
            404,
            {"error": {"message": "m is not here", "code": "model_not_found"}},
            FaultKind.NOT_FOUND,
            "m is not here",
            "list the models with: client models",
        ),
        (
            400,
            {"error": {"message": "a (b) c (d)", "code": "context_length_exceeded"}},
            FaultKind.CONTEXT_OVERFLOW,
            "a (b) c (d)",
            "",
        ),
        (422, {"error": "x (do y)", "error_type": "validation"}, FaultKind.INVALID_REQUEST, "x", "do y"),
        (
            503,
            "upstream is down",
            FaultKind.NOT_READY,
            "upstream is down",
            "wait for it with: client health --wait 60",
        ),
        (418, {"detail": "teapot"}, FaultKind.INVALID_REQUEST, "teapot", ""),
        (599, {"message": "odd"}, FaultKind.INTERNAL, "odd", ""),
    ],
)
def test_error_bodies(status: int, body: object, kind: FaultKind, message: str, hint: str) -> None:
    error = error_of_body(body, status, "r")
    assert (error.kind, error.message, error.hint, error.request_id) == (kind, message, hint, "r")


def test_every_kind_has_an_exception() -> None:
    assert set(ERROR_TYPES) == set(FaultKind)
    assert set(KINDS_OF_STATUS.values()) <= set(FaultKind)


def test_errors_survive_pickling() -> None:
    error = NotReadyError(FaultKind.NOT_READY, "a", "b", request_id="r", retry_after_s=2)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is NotReadyError
    assert (copy.message, copy.hint, copy.request_id, copy.retry_after_s) == ("a", "b", "r", 2)
    lost = pickle.loads(pickle.dumps(ConnectionLostError("x", request_id="r")))  # noqa: S301 - our own
    assert (type(lost), lost.request_id) == (ConnectionLostError, "r")


BAD_OPTIONS: list[tuple[dict[str, object], str]] = [
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_token": 3}, "max_token"),
    ({"stop": 3}, "stop"),
    ({"prompt_logprobs": 1}, "prompt"),
]


@pytest.mark.parametrize(("options", "word"), BAD_OPTIONS)
def test_wrong_options_are_named(options: dict[str, object], word: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidRequestError, match=word):
        client.generate("x", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], ["text"], [{"role": "user", "content": ""}]])
def test_wrong_messages_are_named(messages: list[object]) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidRequestError, match="message"):
        client.chat(messages)  # type: ignore[arg-type]
