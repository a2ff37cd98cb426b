"""manifest.json: what a version's folder holds, so that damage is noticed.

The builder writes it last; the daemon checks sizes and small files at load; ``builder verify`` checks
everything. Hashes detect damage, not malice: whoever can change a file can change the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.serving import FORMAT_VERSION

MANIFEST_NAME = "manifest.json"
SMALL_FILE_BYTES = 16 * 1024 * 1024
"""Files up to this size are hashed whenever a model is loaded."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the folder."""

    size: int
    sha256: str | None = None
    """``None``: linked without reading it; ``builder verify --hash`` fills it in."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the content came from. Holds no path, time or host: same inputs, same bytes."""

    builder: str
    """Version of the builder."""
    recipe: str
    fingerprint: str
    """SHA-256 of everything that determines the content, weights by name, size and header only."""
    dtype: str
    """Weights as stored."""
    weights: dict[str, FileEntry] = {}
    """The publisher's weight files: name, size and SHA-256 before any conversion."""
    notes: list[str] = []
    """Disagreements between the inputs and how each was resolved."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format_version: int
    layer_api: int | None
    """Version of the layer API that the network was written for."""
    files: dict[str, FileEntry]
    """Every file of the folder but the manifest, by its path relative to the folder."""
    provenance: Provenance

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """The file's content: sorted, so that equal manifests are equal bytes."""
        return canonical_json(msgspec.to_builtins(self))


class Difference(msgspec.Struct, frozen=True):
    """One way in which a folder differs from its manifest."""

    file: str
    reason: Literal["missing", "size", "content", "unreadable", "unexpected"]
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        if self.reason == "missing":
            return f"{self.file}: missing"
        if self.reason == "unexpected":
            return f"{self.file}: not in the manifest"
        if self.reason == "unreadable":
            return f"{self.file}: cannot be read: {self.found}"
        noun = "bytes" if self.reason == "size" else "sha256"
        return f"{self.file}: {noun} {self.found}, expected {self.expected}"


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, indented, ending with a newline."""
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a version's folder. Raises ``Fault``."""
    path = directory / MANIFEST_NAME
    try:
        data = json.loads(path.read_bytes())
        found = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(found, int) and found > FORMAT_VERSION:
            message = f"{path} has format version {found}; this MindPort reads {FORMAT_VERSION}"
            raise Fault(FaultKind.INVALID_MODEL, message, "upgrade MindPort, or package the model again")
        manifest = msgspec.convert(data, Manifest)
    except FileNotFoundError:
        hint = "an interrupted or foreign folder; package it with: builder package --model NAME"
        raise Fault(FaultKind.INVALID_MODEL, f"{directory} has no {MANIFEST_NAME}", hint) from None
    except (OSError, ValueError) as error:
        hint = "package the model again with: builder package --replace"
        raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error}", hint) from None
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            message = f"{path} names {name!r}, which is outside the folder"
            raise Fault(FaultKind.INVALID_MODEL, message, "package the model again from a source you trust")
    return manifest


def find_differences(
    directory: Path,
    manifest: Manifest,
    hash_up_to: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> list[Difference]:
    """Everything in which the folder differs from its manifest; empty when it is intact.

    ``hash_up_to`` limits hashing to files of at most that many bytes (sizes are always compared): pass
    ``SMALL_FILE_BYTES`` at load. Entries without a hash are compared by size.
    """
    found = list(_unexpected(directory, manifest))
    for name, entry in sorted(manifest.files.items()):
        limit = hash_up_to is None or entry.size <= hash_up_to
        difference = _difference(directory, name, entry, limit, on_bytes)
        if difference is not None:
            found.append(difference)
    return found


def _difference(
    directory: Path, name: str, entry: FileEntry, hashed: bool, on_bytes: Callable[[int], None] | None
) -> Difference | None:
    path = directory / name
    try:
        size = path.stat().st_size
        if size != entry.size:
            return Difference(name, "size", str(entry.size), str(size))
        if not hashed or entry.sha256 is None:
            return None
        digest = sha256_of_file(path, on_bytes)
    except FileNotFoundError:
        return Difference(name, "missing")
    except OSError as error:
        return Difference(name, "unreadable", found=error.strerror or str(error))
    return None if digest == entry.sha256 else Difference(name, "content", entry.sha256, digest)


def _unexpected(directory: Path, manifest: Manifest) -> Iterator[Difference]:
    """Files nobody listed. Dot files and Python's own caches are left alone."""
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        name = relative.as_posix()
        if not hidden and path.is_file() and name != MANIFEST_NAME and name not in manifest.files:
            yield Difference(name, "unexpected")
