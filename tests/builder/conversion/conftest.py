"""A small checkpoint, and the command that converts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from builder.families import FAMILIES
from tests.builder.conftest import CONFIG, Builder, Run, tensors

Convert = Callable[..., Run]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small TeleChat2 by HuggingFace's names."""
    folder = tmp_path / "source"
    folder.mkdir()
    arrays = {name: array.astype("f4") for name, array in tensors(CONFIG).items()}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def convert(builder: Builder, source: Path) -> Convert:
    """The command, told which model it is."""

    def run(*arguments: object) -> Run:
        return builder("convert", *arguments, "--model", source, "-q")

    return run


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_hf(folder: Path, family: str, config: dict[str, Any]) -> Path:
    """A folder as a hub has it, with random weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    expected = FAMILIES[family].expected_tensors(config)
    arrays = {name: rng.normal(size=shape).astype("f4") for name, shape in expected}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder


def refused(run: Run, *words: str) -> None:
    """One sentence with these words, a remedy, no traceback."""
    assert run.code in (2, 4, 6), (run.out, run.err)
    assert all(word in run.err for word in words), run.err
    assert "hint: " in run.err or " — " in run.err
    assert "Traceback" not in run.err
