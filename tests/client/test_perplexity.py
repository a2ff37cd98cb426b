"""``client perplexity``: passages cover a text once, and the daemon's numbers become one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import Client
from client.cli import run
from client.errors import InvalidRequestError, ProtocolError
from client.perplexity import Piece, passages, perplexity, read_pieces
from contract.faults import Fault
from tests.client.scripted import Reply, scripted
from tests.daemon.grpc_api.running import RunningDaemon


@given(st.integers(0, 50), st.integers(0, 200), st.integers(2, 40))
def test_every_token_is_scored_once_with_context(prompt: int, completion: int, longest: int) -> None:
    ids = tuple(range(prompt + completion))
    scored: list[int] = []
    for passage in passages(ids[:prompt], ids, longest):
        assert passage.first < len(passage.ids) <= longest
        assert passage.first >= min(passage.ids[passage.first], longest // 2) >= 1
        scored += passage.ids[passage.first :]
    assert scored == list(range(max(1, prompt), prompt + completion))


def test_a_prompt_ends_where_its_tokens_do() -> None:
    """The last token of the prompt became another when the completion followed."""
    (passage,) = passages((1, 2, 3), (1, 2, 9, 4), 512)
    assert passage.first == 2


def test_the_number() -> None:
    assert perplexity("m", [math.log(0.5)] * 3).perplexity == pytest.approx(2)
    assert perplexity("m", [math.log(0.5), math.log(0.125)]).perplexity == pytest.approx(4)
    assert perplexity("m", [-1e9]).perplexity == math.inf
    with pytest.raises(Fault, match="no token that could be foreseen"):
        perplexity("m", [])


def test_texts_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("你好\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "2 = ", "completion": "2"}\n\n{"completion": "x"}\n')
    assert read_pieces(tmp_path / "a.txt") == [Piece("你好\n")]
    assert read_pieces(tmp_path / "a.jsonl") == [Piece("2", "2 = "), Piece("x")]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "is not UTF-8: byte 0"), (b'{"text": 1}', ":1 is no piece"), (b"[", ":1 is no piece")],
)
def test_what_is_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert run(["perplexity", "-m", "m", "--text", str(tmp_path / "a.jsonl")]) == 2
    assert said in capsys.readouterr().err
    assert run(["perplexity", "-m", "m", "--text", str(tmp_path / "none.txt")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def _replies(ids: Sequence[int], *scores: float | None) -> tuple[Reply, Reply]:
    tokens = Reply(200, (json.dumps({"tokens": list(ids), "max_model_len": 8}),))
    choice = {"index": 0, "logprobs": {"token_logprobs": list(scores)}}
    return tokens, Reply(200, (json.dumps({"choices": [choice]}),))


def test_two_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("abc")
    half, quarter = math.log(0.5), math.log(0.25)
    replies = (*_replies((7, 8, 9), None, half, half), *_replies((7, 8, 9), None, half, quarter))
    with scripted(*replies) as (url, server):
        assert run(["perplexity", "-m", "a", "-m", "b", "--text", str(tmp_path / "a.txt"), "--url", url]) == 0
    assert server.bodies[0] == {"prompt": "abc", "model": "a"}
    assert server.bodies[3] == {
        "model": "b",
        "prompt": [7, 8, 9],
        "max_tokens": 0,
        "echo": True,
        "logprobs": 0,
    }
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["MODEL", "TOKENS", "PERPLEXITY", "CHANGE"],
        ["a", "2", "2"],
        ["b", "2", "2.8284", "+41.421%"],
    ]


def test_answers_without_the_numbers_are_errors() -> None:
    with scripted(Reply(200, ("{}",))) as (url, _), Client(url) as client:
        with pytest.raises(ProtocolError, match="without tokens"):
            client.tokenize("abc")
        with pytest.raises(ProtocolError, match="log-probability of every token"):
            client.score([1, 2])


def test_grpc_has_no_words_for_it() -> None:
    with Client("grpc://127.0.0.1:1") as client:
        with pytest.raises(InvalidRequestError, match="tokens"):
            client.tokenize("abc")
        with pytest.raises(InvalidRequestError, match="log-probabilities"):
            client.score([1, 2])


def test_an_unknown_model(daemon: RunningDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("abc")
    words = ["perplexity", "-m", "nobody", "--text", str(tmp_path / "a.txt"), "--url", daemon.http_url]
    assert run(words) == 4
    assert "nobody" in capsys.readouterr().err
