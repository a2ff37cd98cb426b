"""The ``verify`` command: every file against the manifest, byte for byte."""

from __future__ import annotations

from pathlib import Path

import msgspec

from builder.forecast import size_text
from builder.model_directory import find_version
from builder.progress import Progress
from builder.report import print_json, remark, say
from builder.staging import replace_file
from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME, FileEntry, Manifest, find_differences, read_manifest


def verify_command(directory: Path, fill: bool, progress: Progress, as_json: bool) -> None:
    """Verify and print. Raises ``Fault`` of kind VERIFICATION_FAILED with every difference."""
    path = find_version(directory)
    manifest = read_manifest(path)
    with progress.stage(f"verifying {path}", manifest.size) as on_bytes:
        differences = find_differences(path, manifest, on_bytes=on_bytes)
    if differences:
        listed = "\n".join(f"  {difference}" for difference in differences)
        count = f"{len(differences)} difference{'s' if len(differences) != 1 else ''}"
        message = f"{path} is not what its manifest says: {count}\n{listed}"
        details = {"path": str(path), "differences": [msgspec.to_builtins(found) for found in differences]}
        number = path.resolve().name
        hint = f"restore the files, or build it again with: builder package ... --version {number} --replace"
        raise Fault(FaultKind.VERIFICATION_FAILED, message, hint, details)
    if fill:
        manifest = fill_digests(path, manifest, progress)
    unhashed = sorted(name for name, entry in manifest.files.items() if entry.sha256 is None)
    if as_json:
        facts = {"path": str(path), "files": len(manifest.files), "bytes": manifest.size}
        print_json({**facts, "differences": [], "not_hashed": unhashed})
        return
    say(f"{path}: {len(manifest.files)} files, {size_text(manifest.size)}, all as in the manifest")
    if unhashed:
        remark(f"not hashed, compared by size only: {', '.join(unhashed)}")
        remark(f"hint: builder verify --hash {path}")


def fill_digests(path: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Hash the files that were linked without reading, and record the result. Changes nothing else."""
    open_names = {name for name, entry in manifest.files.items() if entry.sha256 is None}
    if not open_names:
        return manifest
    total = sum(manifest.files[name].size for name in open_names)
    files, sources = dict(manifest.files), dict(manifest.provenance.weights)
    with progress.stage(f"hashing {path}", total) as on_bytes:
        for name in sorted(open_names):
            entry = FileEntry(files[name].size, sha256_of_file(path / name, on_bytes))
            files[name] = entry
            if name in sources and sources[name].sha256 is None:
                sources[name] = entry
    provenance = msgspec.structs.replace(manifest.provenance, weights=sources)
    filled = msgspec.structs.replace(manifest, files=files, provenance=provenance)
    replace_file(path / MANIFEST_NAME, filled.to_bytes())
    return filled
