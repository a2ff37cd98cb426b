"""``client load`` and ``client unload`` on the wire."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client import Client
from client.cli import run
from client.errors import InvalidRequestError
from tests.client.scripted import Reply, scripted

DONE = Reply(200, ("",), {})


def _listing(model: str, adapter: str | None = None) -> tuple[Reply, Reply]:
    """What the client asks before it unloads: ``/v1/models`` and the repository's index."""
    cards = [{"id": model}, *([{"id": adapter, "parent": model}] if adapter else [])]
    index = [{"name": model, "version": "1", "state": "READY"}]
    return Reply(200, (json.dumps({"data": cards}),), {}), Reply(200, (json.dumps(index),), {})


def test_models_and_adapters_are_loaded_and_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with scripted(DONE, DONE, DONE, *_listing("m"), DONE) as (url, server):
        assert run(["load", "m@2", "--url", url]) == 0
        assert run(["load", "m", "--adapter", "pirate=lora", "--url", url]) == 0
        assert run(["unload", "--adapter", "pirate", "--url", url]) == 0
        assert run(["unload", "m", "--url", url]) == 0
    assert server.bodies == [
        {"parameters": {"version": "2"}},
        {"lora_name": "pirate", "lora_path": str(tmp_path / "lora"), "model": "m"},
        {"lora_name": "pirate"},
        None,
        {},
        {},
    ]
    assert server.paths == [
        "/v2/repository/models/m/load",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/models",
        "/v2/repository/index",
        "/v2/repository/models/m/unload",
    ]


def test_a_name_stays_one_part_of_the_path() -> None:
    with scripted(DONE) as (url, server):
        assert run(["load", "../a?b/c", "--url", url]) == 0
    assert server.paths == ["/v2/repository/models/..%2Fa%3Fb%2Fc/load"]


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [("x", 4, "the server has no model 'x'"), ("pirate", 2, "say: client unload --adapter pirate")],
)
def test_only_a_model_that_is_there_is_unloaded(
    capsys: pytest.CaptureFixture[str], name: str, code: int, sentence: str
) -> None:
    with scripted(*_listing("m", "pirate")) as (url, server):
        assert run(["unload", name, "--url", url]) == code
    assert len(server.bodies) == 2
    assert sentence in capsys.readouterr().err


def test_a_server_may_have_the_index_alone() -> None:
    missing = Reply(404, ('{"error": "there is no /v1/models here"}',), {"X-Fault-Kind": "not_found"})
    with scripted(missing, _listing("m")[1], DONE) as (url, server):
        assert run(["unload", "m", "--url", url]) == 0
    assert len(server.bodies) == 3
    with scripted(missing) as (url, _):
        assert run(["models", "--url", url]) == 4


def test_health_needs_no_key() -> None:
    refused = Reply(401, ('{"error": "an API key is required"}',), {"X-Fault-Kind": "unauthenticated"})
    with scripted(DONE, DONE, refused) as (url, _):
        assert run(["health", "--url", url]) == 0


@pytest.mark.parametrize(
    "words", [["load", "m", "--adapter", "pirate"], ["load", "m", "--adapter", "=x"], ["unload"], ["load"]]
)
def test_what_says_too_little_is_a_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert "error:" in capsys.readouterr().err


def test_grpc_knows_no_adapters() -> None:
    with Client("grpc://127.0.0.1:1") as client, pytest.raises(InvalidRequestError, match="use HTTP"):
        client.load("m", ("pirate", "/x"))
