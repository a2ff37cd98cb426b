"""Damage is found at load, without reading the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME, FileEntry, Manifest, Provenance
from daemon.repository.checks import check_directory


def packaged(folder: Path) -> Path:
    files = {"config.json": b"{}", "model.safetensors": b"0" * 64}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    entries = {name: FileEntry(len(files[name]), sha256_of_file(folder / name)) for name in files}
    provenance = Provenance(builder="0", recipe="r", fingerprint="f", dtype="float32")
    manifest = Manifest(format_version=1, layer_api=None, files=entries, provenance=provenance)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return folder


def test_an_intact_folder_with_a_note(tmp_path: Path) -> None:
    packaged(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    check_directory(tmp_path, manifest_required=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"[]", "config.json: sha256"),
        ("model.safetensors", b"0" * 63, "model.safetensors: bytes 63, expected 64"),
        ("model.safetensors", None, "model.safetensors: missing"),
    ],
)
def test_damage(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = packaged(tmp_path) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Fault, match=words) as caught:
        check_directory(tmp_path, manifest_required=True)
    assert caught.value.kind is FaultKind.VERIFICATION_FAILED


def test_no_manifest(tmp_path: Path) -> None:
    check_directory(tmp_path, manifest_required=False)
    with pytest.raises(Fault, match="has no manifest"):
        check_directory(tmp_path, manifest_required=True)
