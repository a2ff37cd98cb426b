"""Addresses, server-sent events, retries, options: the parts that need no server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.address import looks_like_address, parse_address
from client.errors import ConnectError, InvalidRequestError, OverloadedError
from client.options import OptionFields, Options
from client.retry import RetryPolicy
from client.sse import EventDecoder
from contract.faults import FaultKind


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("http://127.0.0.1:1025", "http://127.0.0.1:1025"),
        ("http://127.0.0.1:1025/", "http://127.0.0.1:1025"),
        ("http://host/proxy/v1/", "http://host:80/proxy"),
        ("https://host", "https://host:443"),
        ("localhost", "http://localhost:1025"),
        ("grpc://[::1]:8001", "grpc://[::1]:8001"),
        ("grpc://host", "grpc://host:8001"),
    ],
)
def test_address(text: str, whole: str) -> None:
    assert str(parse_address(text)) == whole


@pytest.mark.parametrize("text", ["", "ftp://a", "http://", "http://a:b", "http://a:99999", "http://u@a"])
def test_wrong_address(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "is_address"),
    [
        ("10.0.0.1:8001", True),
        ("[::1]:1", True),
        ("localhost", True),
        ("grpc://a", True),
        ("你好", False),
        ("hello", False),
        ("what is 1:1?", False),
    ],
)
def test_prompts_are_told_from_addresses(text: str, is_address: bool) -> None:
    assert looks_like_address(text) is is_address


@given(
    st.lists(st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"), min_size=1), max_size=5),
    st.data(),
)
def test_events_arrive_whole_however_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    sent = b"".join(f": note\nevent: x\ndata: {text}\r\n\r\n".encode() for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    decoder = EventDecoder()
    received: list[str] = []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        received += decoder.feed(sent[start:end])
    received += decoder.finish()
    assert received == texts


def test_last_event_needs_no_empty_line() -> None:
    decoder = EventDecoder()
    assert list(decoder.feed(b"data:one\ndata: two")) == []
    assert list(decoder.finish()) == ["one\ntwo"]


def test_delays_double_and_are_spread() -> None:
    policy = RetryPolicy(retries=3, first_delay_s=1.0, max_delay_s=3.0)
    error = ConnectError("x")
    assert [policy.delay_s(error, attempt, lambda: 1.0) for attempt in range(4)] == [1.0, 2.0, 3.0, None]
    assert policy.delay_s(error, 0, lambda: 0.0) == 0.5


def test_server_says_when_to_come_back() -> None:
    policy = RetryPolicy(first_delay_s=0.1)
    busy = OverloadedError(FaultKind.OVERLOADED, "x", retry_after_s=2.0)
    assert policy.delay_s(busy, 0) == 2.0
    assert policy.delay_s(OverloadedError(FaultKind.OVERLOADED, "x"), 0) is None
    assert policy.delay_s(OverloadedError(FaultKind.OVERLOADED, "x", retry_after_s=60), 0) is None


def test_keyword_arguments_are_the_options() -> None:
    assert set(OptionFields.__annotations__) == set(Options.__struct_fields__) - {"prompt_logprobs"}
