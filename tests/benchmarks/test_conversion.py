"""A model is converted for a peer once, and again when the model or the command is another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.conversion import convert
from benchmarks.load import EngineError

_WRITE = """
import pathlib, sys
out = pathlib.Path(sys.argv[1])
out.mkdir() if sys.argv[2] == "folder" else out.write_text("")
calls = pathlib.Path(sys.argv[3])
calls.write_text(calls.read_text() + "x")
sys.exit(int(sys.argv[4]))
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_conversion_is_kept_until_what_it_was_made_of_changes(tmp_path: Path, kind: str) -> None:
    config, calls, result = tmp_path / "config.json", tmp_path / "calls", tmp_path / "peer" / "model"
    config.write_text("{}")
    calls.write_text("")

    def made(code: int = 0, *more: str) -> int:
        command = [sys.executable, "-c", _WRITE, str(result), kind, str(calls), str(code), *more]
        convert(tmp_path, command, result, "converting")
        return len(calls.read_text())

    assert made() == 1
    assert made() == 1
    assert made(0, "--other") == 2
    config.write_text('{"layers": 2}')
    assert made(0, "--other") == 3
    with pytest.raises(EngineError, match="converting failed"):
        made(1)
    with pytest.raises(EngineError, match="converting failed"):
        made(1)
    assert len(calls.read_text()) == 5, "what failed is not kept"
