"""``builder convert``: interrupted, out of space, or beside another; what is finished is kept."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from builder.conversion import convert as use_case
from builder.staging import publish
from tests.builder.checkpoints.arrays import same
from tests.builder.conftest import CONFIG, Builder, spawn, write_sparse_weights
from tests.builder.conversion.conftest import Convert, entries, refused


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """1.5 GB of weights that take no room."""
    folder = tmp_path / "large"
    folder.mkdir()
    config = {**CONFIG, "vocab_size": 8_000_000, "hidden_size": 32, "n_head": 4}
    (folder / "config.json").write_text(json.dumps(config))
    write_sparse_weights(folder / "model.safetensors", config)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_after_an_interrupt_finished_files_are_kept_and_taken_up(
    number: signal.Signals, large: Path, builder: Builder, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    arguments = ("convert", large, target, "--max-shard-size", "1MB")
    journal = tmp_path / ".converting-out" / "journal.json"
    for _ in range(3):
        process = spawn(*arguments, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        deadline = time.monotonic() + 30
        while not journal.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        _out, err = process.communicate(timeout=30)
        if process.returncode != 0:
            break
        shutil.rmtree(target)  # it was faster than the signal
    assert not target.exists()
    kept = {"journal.json", *json.loads(journal.read_text())["files"]}
    if number != signal.SIGKILL:
        assert process.returncode == 130, err
        assert "the same command goes on behind the finished files" in err
        assert {path.name for path in journal.parent.iterdir()} == kept
    run = builder(*arguments, "--json")
    assert run.code == 0
    resumed = [file["name"] for file in run.json()["files"] if file["resumed"]]
    assert {"journal.json", *resumed} == kept
    assert not journal.parent.exists()
    assert (target / "model.safetensors.index.json").is_file()


def test_a_disk_that_becomes_full_keeps_what_is_finished(large: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, 2**22))

    target = tmp_path / "out"
    process = spawn("convert", large, target, "--max-shard-size", "1MB", preexec_fn=limit)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "became full" in err
    assert "run the same command again" in err
    assert not target.exists()
    kept = list(tmp_path.glob(".converting-out/*"))
    assert all(path.stat().st_size < 2**22 for path in kept)


def test_a_finished_file_that_was_damaged_is_made_again(
    source: Path, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    arguments = ("convert", source, target, "--max-shard-size", "8KB", "--json")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(use_case, "_write_small", interrupted)
    assert builder(*arguments).code == 130
    monkeypatch.undo()
    store = tmp_path / ".converting-out"
    damaged, *others = sorted(store.glob("*.safetensors"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    files = builder(*arguments).json()["files"]
    assert {file["name"] for file in files if file["resumed"]} == {path.name for path in others}
    joined: dict[str, Any] = {}
    for path in target.glob("*.safetensors"):
        joined |= load_file(path)
    assert same(joined, load_file(source / "model.safetensors"))


def test_another_conversion_begins_anew(
    source: Path, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(use_case, "_write_small", interrupted)
    assert builder("convert", source, target, "--max-shard-size", "8KB").code == 130
    monkeypatch.undo()
    run = builder("convert", source, target, "--dtype", "float16", "--json")
    assert not any(file["resumed"] for file in run.json()["files"])
    assert entries(target) == ["SHA256SUMS", "model.safetensors"]


def test_too_little_space_is_said_before_the_first_byte(
    source: Path, convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    refused(convert(source, tmp_path / "new" / "out"), "has 1000 B free", "needs 16.1 MiB")
    assert not (tmp_path / "new").exists()


def test_somebody_else_at_the_same_target_is_told(source: Path, convert: Convert, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / ".converting-out"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        refused(convert(source, tmp_path / "out"), "another builder is writing")
    finally:
        os.close(descriptor)


def test_what_came_meanwhile_is_not_overwritten(
    source: Path, convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(folder: Path, place: Path) -> None:
        place.write_text("mine")
        publish(folder, place)

    monkeypatch.setattr("builder.conversion.store.publish", late)
    refused(convert(source, tmp_path / "a.ckpt", "--to", "mindformers-r1"), "a.ckpt exists")
    assert (tmp_path / "a.ckpt").read_text() == "mine"
    assert not list(tmp_path.glob(".converting-*"))
