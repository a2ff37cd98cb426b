"""The benchmark's arguments and its script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import options
from benchmarks.__main__ import ENGINES
from tests.benchmarks.cases import ROOT


def test_the_short_form_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    short = options.parse([])
    assert (short.formats, short.streams, short.minutes) == (("float32", "int8", "int4"), (1, 8), 10)
    assert short.peers == ("llama.cpp", "ctranslate2")
    assert "variants" not in short.parts
    assert short.cache == tmp_path / "mindport" / "benchmarks"
    assert short.out == short.cache / "results"


def test_full_measures_everything() -> None:
    full = options.parse(["--full"])
    assert (full.formats, full.streams, full.parts) == (options.FORMATS, (1, 8, 16), options.PARTS)
    assert full.peers == options.PEERS
    assert set(ENGINES) == {"mindport", *options.PEERS}


def test_what_is_given_goes_first(tmp_path: Path) -> None:
    given = options.parse(
        [
            "--full",
            "--peers",
            "llama.cpp",
            "--formats",
            "int4,float32",
            "--streams",
            "16,1",
            "--out",
            str(tmp_path),
        ]
    )
    assert (given.peers, given.formats, given.streams) == (("llama.cpp",), ("int4", "float32"), (1, 16))
    assert given.out == tmp_path
    assert options.parse(["--peers", "none"]).peers == ()


def test_a_part_that_is_named_is_measured_again() -> None:
    assert options.parse(["--full", "--resume"]).again == ()
    assert options.parse(["--resume", "--only", "quality"]).again == ("quality",)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--peers", "ollama"],
        ["--formats", "float64"],
        ["--formats", ""],
        ["--streams", "0"],
        ["--streams", "many"],
        ["--rounds", "-1"],
        ["--cpus", "a"],
        ["--cpus", "99999"],
        ["--only", "speed"],
        ["--isa", "sse9"],
    ],
)
def test_wrong_arguments_end_the_program(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        options.parse(wrong)
    assert ending.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_script_is_a_bash_script() -> None:
    path = ROOT / "scripts" / "bench"
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    assert path.stat().st_mode & 0o111
