"""``daemon check`` finds beforehand what a start would stumble over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.faults import Fault
from contract.memory import Room
from daemon.backends.ms.weights import estimate
from daemon.preflight import Report, check_all
from daemon.settings_sources import resolve
from tests.daemon.backends.ms.tiny_telechat2 import write_model as write_tiny
from tests.fakes import write_model

NOTHING = {"PATH": "/bin"}


def check(tmp_path: Path, **settings: Any) -> Report:
    ports = dict.fromkeys(("http_port", "management_port", "metrics_port", "grpc_port"), 0)
    flags = {
        "state_dir": str(tmp_path / "state"),
        "repository": [str(tmp_path / "shelf")],
        **ports,
        **settings,
    }
    return check_all(resolve(flags, environ=NOTHING).settings)


def problems(report: Report) -> str:
    return "\n".join(str(problem) for problem in report.problems)


def test_a_good_repository(tmp_path: Path) -> None:
    write_model(tmp_path / "shelf", "m", backend="mock")
    assert problems(check(tmp_path, model=["m@1"], default_model="m")) == ""


def test_a_damaged_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "shelf", "m", backend="mock")
    entry = {"sha256": "0" * 64, "size": 3}
    manifest = {"format_version": 1, "layer_api": None, "provenance": {}, "files": {"weights": entry}}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert "m@1: " in problems(check(tmp_path))


def test_models_that_need_more_memory_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = dict.fromkeys(("builder", "recipe", "fingerprint", "dtype"), "")
    manifest = {"format_version": 1, "layer_api": None, "provenance": provenance, "files": {}}
    for name in ("m", "n"):
        folder = write_tiny(tmp_path / "shelf" / name / "1")
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    weights = estimate(folder).weight_bytes
    monkeypatch.setattr("daemon.preflight.available_memory", lambda: Room(weights, "the control group /a"))
    text = problems(check(tmp_path))
    assert "the weights of m, n take" in text
    assert "bound by the control group /a" in text
    assert "memory: " not in problems(check(tmp_path, model=["m"]))


def test_models_that_are_not_there(tmp_path: Path) -> None:
    write_model(tmp_path / "shelf", "m", backend="mock")
    text = problems(check(tmp_path, model=["m@2"], default_model="n"))
    assert "model: no model 'm@2'" in text
    assert "default_model: no model 'n' — models in the repository: m" in text


def test_a_model_named_in_place_of_its_repository(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "shelf", "m", backend="mock")
    text = problems(check(tmp_path, repository=[str(folder)]))
    assert "is one version of a model, not a repository of models" in text
    assert f"name the folder around it: --repository {tmp_path / 'shelf'}" in text
    (folder.parent / "config.pbtxt").write_text('backend: "mock"\n', "utf-8")
    assert "is a model, not a repository" in problems(check(tmp_path, repository=[str(folder.parent)]))


def test_an_unusable_state_directory(tmp_path: Path) -> None:
    write_model(tmp_path / "shelf", "m", backend="mock")
    (tmp_path / "state" / "lock").mkdir(parents=True)
    assert "cannot be written to" in problems(check(tmp_path))


def test_off_in_yaml_is_off(tmp_path: Path) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text("metrics_port: off\ngrpc_port: 'off'\nmanagement_port: null\n", "utf-8")
    settings = resolve({}, file, NOTHING).settings
    assert (settings.metrics_port, settings.grpc_port, settings.management_port) == (None, None, None)
    file.write_text("metrics_port: on\n", "utf-8")
    with pytest.raises(Fault, match="write a port number or off"):
        resolve({}, file, NOTHING)
