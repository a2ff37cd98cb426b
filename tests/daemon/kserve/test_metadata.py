"""Metadata and configuration, from a config.pbtxt, from a backend, or from nothing."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from contract.faults import Fault
from daemon.kserve import metadata
from daemon.repository.status import ModelStatus, State

PBTXT = """
name: "m"
backend: "ms"
max_batch_size: 4
input [{ name: "X" data_type: TYPE_FP32 dims: [ -1, 2 ] }]
output [{ name: "Y" data_type: TYPE_STRING dims: [ 1 ] }]
parameters { key: "k" value: { string_value: "v" } }
"""


def status(directory: Path | None = None, **more: object) -> ModelStatus:
    folder = "" if directory is None else str(directory / "1")
    return ModelStatus(
        name="m",
        version="1",
        state=State.READY,
        backend="ms",
        directory=folder,
        details=dict(more),
    )


def test_what_triton_has_no_field_for_is_a_parameter() -> None:
    served = msgspec.structs.replace(status(), context_len=512, adapters=["pirate", "水手"])
    parameters = metadata.model_config(served)["parameters"]
    assert parameters["context_len"] == {"string_value": "512"}
    assert json.loads(parameters["adapters"]["string_value"]) == ["pirate", "水手"]


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(PBTXT, "utf-8")
    described = metadata.model_metadata(status(tmp_path), ["1", "3"])
    assert described["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, -1, 2]}]
    assert described["outputs"] == [{"name": "Y", "datatype": "BYTES", "shape": [-1, 1]}]
    assert (described["platform"], described["versions"]) == ("ms", ["1", "3"])
    config = metadata.model_config(status(tmp_path))
    assert config["input"][0]["dims"] == [-1, 2]
    assert config["parameters"] == {"k": {"string_value": "v"}}
    assert config["platform"] == ""


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("nonsense {", "utf-8")
    with pytest.raises(Fault, match=r"config\.pbtxt cannot be read"):
        metadata.model_config(status(tmp_path))


def test_from_the_backend() -> None:
    declared = {"max_batch_size": 0, "input": [{"name": "A", "data_type": "TYPE_BOOL", "dims": ["1"]}]}
    described = metadata.model_metadata(status(model_config=declared))
    assert described["inputs"] == [{"name": "A", "datatype": "BOOL", "shape": [1]}]


def test_from_nothing_it_is_a_text_model() -> None:
    described = metadata.model_metadata(status())
    assert [tensor["name"] for tensor in described["inputs"]][:2] == ["text_input", "messages"]
    assert metadata.model_config(status())["model_transaction_policy"] == {"decoupled": True}


def test_index() -> None:
    states = [State.LISTED, State.LOADING, State.READY, State.DRAINING, State.UNLOADED, State.RESTARTING]
    statuses = [ModelStatus(name=state, version="1", state=state, backend="ms") for state in states]
    index = {entry["name"]: entry.get("state", "-") for entry in metadata.repository_index(statuses)}
    assert index == {
        "listed": "-",
        "loading": "LOADING",
        "ready": "READY",
        "draining": "UNLOADING",
        "unloaded": "UNAVAILABLE",
        "restarting": "LOADING",
    }
    assert [entry["name"] for entry in metadata.repository_index(statuses, ready_only=True)] == ["ready"]
    assert metadata.repository_index([statuses[4]])[0]["reason"] == "unloaded"


def test_every_state_is_known() -> None:
    for state in State:
        metadata.repository_index([ModelStatus(name="m", version="1", state=state, backend="ms")])
