"""``client load`` and ``client unload`` on the wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import Client
from client.cli import run
from client.errors import InvalidRequestError
from tests.client.scripted import Reply, scripted

DONE = Reply(200, ("",), {})


def test_models_and_adapters_are_loaded_and_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with scripted(DONE, DONE, DONE, DONE) as (url, server):
        assert run(["load", "m@2", "--url", url]) == 0
        assert run(["load", "m", "--adapter", "pirate=lora", "--url", url]) == 0
        assert run(["unload", "--adapter", "pirate", "--url", url]) == 0
        assert run(["unload", "m", "--url", url]) == 0
    assert server.bodies == [
        {"parameters": {"version": "2"}},
        {"lora_name": "pirate", "lora_path": str(tmp_path / "lora"), "model": "m"},
        {"lora_name": "pirate"},
        {},
    ]


@pytest.mark.parametrize(
    "words", [["load", "m", "--adapter", "pirate"], ["load", "m", "--adapter", "=x"], ["unload"], ["load"]]
)
def test_what_says_too_little_is_a_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert "error:" in capsys.readouterr().err


def test_grpc_knows_no_adapters() -> None:
    with Client("grpc://127.0.0.1:1") as client, pytest.raises(InvalidRequestError, match="use HTTP"):
        client.load("m", ("pirate", "/x"))
