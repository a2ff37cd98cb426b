"""The command line: help, exit codes, streams, what it imports and how fast it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder import cli as cli_module
from builder.cli import cli
from tests.builder.conftest import ROOT, Builder, Workshop, spawn

COMMANDS = ("list", "package", "convert", "check", "inspect", "verify", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(builder: Builder, command: str) -> None:
    run = builder(command, "--help")
    assert run.code == 0
    assert f"Examples:\n    builder {command}" in run.out
    assert "--json" in run.out
    assert set(cli.commands) == set(COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["package", "--help"], ["convert", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom builder.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write('\\n'.join(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stderr.split())
    heavy = {
        "numpy",
        "sentencepiece",
        "tokenizers",
        "pydantic",
        "yaml",
        "jinja2",
        "rich",
        "mindspore",
        "daemon",
        "client",
    }
    assert not loaded & heavy


def test_help_starts_in_half_a_second() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "builder.cli", "--help"], cwd=ROOT, capture_output=True, check=True
        )
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["package"], 2, "error: Missing option '--model'"),
        (["package", "--mdel", "x"], 2, "hint: see: builder package --help"),
        (["lis"], 2, "No such command 'lis'. Did you mean 'list'?"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["package", "--model", "telechat_7b"], 4, "did you mean telechat2_7b?"),
        (["package", "--model", "nowhere.yaml"], 4, "nowhere.yaml does not exist"),
        (["package", "--model", "telechat2_tiny", "--name", "../x"], 2, "cannot be a model's name"),
        (["verify", "/nowhere"], 4, "/nowhere does not exist"),
        (["inspect", "/"], 2, "is not a model directory"),
        (["check", "tests"], 2, "for sources: builder check MODEL --weights tests"),
        (["check", "nonsense"], 4, "there is no recipe 'nonsense'"),
    ],
)
def test_exit_codes(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, sentence: str
) -> None:
    monkeypatch.chdir(ROOT)
    run = builder(*arguments)
    assert run.code == code
    assert sentence in run.err
    assert run.out == ""
    as_json = builder(*arguments, "--json")
    assert as_json.code == code
    assert set(as_json.json()) == {"error"}


def test_an_unexpected_error_is_one_sentence(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("builder.listing.list_recipes", fail)
    run = builder("list")
    assert (run.code, run.err.splitlines()[0]) == (1, "error: unexpected RuntimeError: boom")
    with pytest.raises(RuntimeError, match="boom"):
        cli_module.main(["list", "--debug"])


def test_list_knows_what_is_there(builder: Builder) -> None:
    entries = {entry["name"]: entry for entry in builder("list", "--json").json()["recipes"]}
    assert {"telechat2_7b", "telechat2_tiny"} <= set(entries)
    assert not entries["telechat2_7b"]["sources_present"]
    assert "weights/telechat2_7b" in builder("list").out


def test_missing_sources_say_what_to_put_where(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINDPORT_WEIGHTS", str(tmp_path / "w"))
    run = builder("package", "--model", "telechat2_7b")
    assert run.code == 4
    for text in (
        str(tmp_path / "w" / "telechat2_7b"),
        "tokenizer.model",
        "modelscope",
        "huggingface",
        "--weights",
    ):
        assert text in run.err


def test_the_repository_is_a_setting(
    builder: Builder, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINDPORT_REPOSITORY", str(workshop.repository))
    assert builder("package", "--model", workshop.recipe, "--quiet").code == 0
    assert (workshop.repository / "tiny/1/manifest.json").is_file()


def test_quiet_says_only_the_result(builder: Builder, workshop: Workshop) -> None:
    workshop.edit_json("config.json", layer_norm_epsilon=1e-8)
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository, "--quiet")
    assert run.err == ""
    assert run.out.count("\n") == 1


def test_check_forecasts(builder: Builder, workshop: Workshop) -> None:
    run = builder("check", workshop.recipe)
    assert run.code == 0
    assert "the inputs are sound" in run.out
    found = builder("check", workshop.recipe, "--json", "--kv-memory", 1, "--block-size", 16).json()
    # block * kv heads * head width * bytes * 2 * layers
    assert found["forecast"]["kv_blocks"] == 2**30 // (16 * 2 * 4 * 2 * 2 * 2)
    assert found["architecture"]["n_layer"] == 2
    assert not workshop.repository.exists()


def test_check_inspect_and_verify_a_directory(builder: Builder, workshop: Workshop) -> None:
    builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    model = workshop.repository / "tiny"
    assert "is sound" in builder("check", model).out
    found = builder("inspect", model, "--json").json()
    assert (found["model"], found["version"], found["network_known"]) == ("tiny", "1", True)
    assert "telechat2.py (known to MindPort)" in builder("inspect", model / "1").out
    assert "all as in the manifest" in builder("verify", model).out
    assert builder("verify", model, "--json").json()["differences"] == []


def test_verify_reports_every_difference(builder: Builder, workshop: Workshop) -> None:
    builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    place = workshop.repository / "tiny/1"
    (place / "README.md").unlink()
    (place / "config.json").write_bytes((place / "config.json").read_bytes() + b" ")
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    (place / "notes.txt").write_text("hello")
    run = builder("verify", place)
    assert run.code == 7
    for line in (
        "README.md: missing",
        "config.json: bytes",
        "model.safetensors: sha256",
        "notes.txt: not in the manifest",
    ):
        assert line in run.err
    differences = builder("verify", place, "--json").json()["error"]["details"]["differences"]
    assert {(found["file"], found["reason"]) for found in differences} == {
        ("README.md", "missing"),
        ("config.json", "size"),
        ("model.safetensors", "content"),
        ("notes.txt", "unexpected"),
    }


def test_check_finds_damage_in_a_directory(builder: Builder, workshop: Workshop) -> None:
    builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    place = workshop.repository / "tiny/1"
    data = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**data, "n_layer": 3}))
    run = builder("check", place)
    assert run.code == 2
    assert "tensors are missing" in run.err


def test_a_closed_pipe_ends_quietly() -> None:
    process = spawn("doctor")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


def test_streams_of_the_real_program(workshop: Workshop) -> None:
    environment = {**os.environ, "NO_COLOR": "1"}
    process = spawn(
        "package", "--model", workshop.recipe, "--out", workshop.repository, "--json", env=environment
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["status"] == "built"
    assert err == ""


def test_without_a_command_there_is_help(builder: Builder) -> None:
    run = builder()
    assert run.code == 2
    assert run.err.startswith("Usage: ")


def test_a_reader_who_leaves_is_no_failure() -> None:
    command = [sys.executable, "-m", "builder.cli", "list"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
