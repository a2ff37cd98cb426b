"""Whether a version's folder is what its manifest says, as far as can be told without reading the weights."""

from __future__ import annotations

from pathlib import Path

from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME, SMALL_FILE_BYTES, find_differences, read_manifest

_SHOWN = 5


def check_directory(directory: Path, *, manifest_required: bool) -> None:
    """Compare all sizes and the small files' hashes. Raises ``Fault``.

    Files that the manifest does not name are let be: people leave notes.
    """
    if not manifest_required and not (directory / MANIFEST_NAME).exists():
        return
    manifest = read_manifest(directory)
    differences = find_differences(directory, manifest, hash_up_to=SMALL_FILE_BYTES)
    damaged = [str(difference) for difference in differences if difference.reason != "unexpected"]
    if not damaged:
        return
    shown = "; ".join(damaged[:_SHOWN])
    more = f"; and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    message = f"{directory} differs from its manifest: {shown}{more}"
    hint = "restore the files, or package the model again with: builder package --replace"
    raise Fault(FaultKind.VERIFICATION_FAILED, message, hint, {"differences": damaged})
