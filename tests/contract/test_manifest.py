"""Manifests: same content, same bytes; every difference is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.checksums import sha256_of_bytes
from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME, FileEntry, Manifest, Provenance, find_differences, read_manifest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"aa")
    (tmp_path / "b").write_bytes(b"bbb")
    files = {"b": FileEntry(3, sha256_of_bytes(b"bbb")), "a": FileEntry(2, sha256_of_bytes(b"aa"))}
    provenance = Provenance(builder="1", recipe="r", fingerprint="f", dtype="float16")
    manifest = Manifest(format_version=1, layer_api=1, files=files, provenance=provenance)
    (tmp_path / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return tmp_path


def test_round_trip(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest.to_bytes() == (directory / MANIFEST_NAME).read_bytes()
    assert manifest.size == 5
    assert find_differences(directory, manifest) == []


def test_every_difference(directory: Path) -> None:
    manifest = read_manifest(directory)
    (directory / "a").write_bytes(b"ax")
    (directory / "b").unlink()
    (directory / "c").write_bytes(b"")
    (directory / ".hidden").write_bytes(b"")
    (directory / "__pycache__").mkdir()
    (directory / "__pycache__" / "x.pyc").write_bytes(b"")
    found = [(difference.file, difference.reason) for difference in find_differences(directory, manifest)]
    assert found == [("c", "unexpected"), ("a", "content"), ("b", "missing")]
    texts = [str(difference) for difference in find_differences(directory, manifest)]
    assert texts[0] == "c: not in the manifest"
    assert texts[2] == "b: missing"


def test_hashing_can_be_limited_and_left_open(directory: Path) -> None:
    manifest = read_manifest(directory)
    (directory / "b").write_bytes(b"bbx")
    assert find_differences(directory, manifest, hash_up_to=2) == []
    assert [found.reason for found in find_differences(directory, manifest)] == ["content"]
    manifest.files["b"] = FileEntry(3)
    assert find_differences(directory, manifest) == []
    manifest.files["b"] = FileEntry(4)
    assert str(find_differences(directory, manifest)[0]) == "b: bytes 3, expected 4"


def test_a_folder_in_place_of_a_file(directory: Path) -> None:
    manifest = read_manifest(directory)
    (directory / "a").unlink()
    (directory / "a").mkdir()
    manifest.files["a"] = FileEntry((directory / "a").stat().st_size, "0" * 64)
    (found,) = find_differences(directory, manifest)
    assert found.reason == "unreadable"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 2}, "has format version 2"),
        ({"surprise": 1}, "cannot be read"),
        ({"files": {"../x": {"size": 1, "sha256": None}}}, "outside the folder"),
        ({"files": {"/x": {"size": 1, "sha256": None}}}, "outside the folder"),
    ],
)
def test_manifests_that_are_refused(directory: Path, change: dict[str, object], sentence: str) -> None:
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(Fault, match=sentence) as caught:
        read_manifest(directory)
    assert caught.value.kind is FaultKind.INVALID_MODEL


def test_no_manifest_and_no_json(directory: Path) -> None:
    path = directory / MANIFEST_NAME
    path.write_text("{")
    with pytest.raises(Fault, match="cannot be read"):
        read_manifest(directory)
    path.unlink()
    with pytest.raises(Fault, match=r"has no manifest\.json"):
        read_manifest(directory)
