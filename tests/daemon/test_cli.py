"""What ``daemon`` says before it does anything: usage, colours, a reader who leaves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from daemon import cli_output
from daemon.cli import main


def run(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return stop.value.code


@pytest.mark.parametrize(
    ("words", "sentence", "hint"),
    [
        (["lst"], "No such command 'lst'", "see: daemon --help"),
        (["start", "--prt", "1"], "No such option '--prt'", "see: daemon start --help"),
        (["load"], "Missing argument 'MODEL'", "see: daemon load --help"),
    ],
)
def test_a_mistake_on_the_command_line_looks_as_all_errors(
    words: list[str], sentence: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}")
    assert f"hint: {hint}" in err
    assert run(*words, "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "invalid_request"


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert capsys.readouterr().err.startswith("Usage: ")


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in cli_output.paint("error: ", fg="red")
    monkeypatch.setenv(variable, value)
    assert cli_output.paint("error: ", fg="red") == "error: "


def test_a_reader_who_leaves_is_no_failure() -> None:
    command = [sys.executable, "-m", "daemon.cli", "check", "--show-origin"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
