"""SHA-256 of files, streamed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from contract import checksums
from contract.checksums import sha256_of_bytes, sha256_of_file


def test_a_file_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(checksums, "_DROP_BYTES", 2000)
    content = bytes(range(256)) * 41
    path = tmp_path / "x"
    path.write_bytes(content)
    steps: list[int] = []
    assert (
        sha256_of_file(path, steps.append) == hashlib.sha256(content).hexdigest() == sha256_of_bytes(content)
    )
    assert sum(steps) == len(content)
    assert max(steps) == 1000


def test_an_empty_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256().hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256_of_file(tmp_path / "y")
