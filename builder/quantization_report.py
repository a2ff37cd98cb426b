"""``package --report``: what rounding did to every layer, as a JSON file."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from builder.staging import replace_file
from contract.faults import Fault, FaultKind
from contract.manifest import canonical_json

if TYPE_CHECKING:
    from builder.package import Result


def check_report(path: Path, dry_run: bool) -> None:
    """Refuse before the first byte what could not be written after the last. Raises ``Fault``."""
    if dry_run:
        message = "--dry-run rounds no layer that --report could tell of"
        raise Fault(FaultKind.INVALID_REQUEST, message, "leave out one of them")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise Fault(FaultKind.INVALID_REQUEST, f"the report {path} {what}", "name a file in a folder")


def write_report(path: Path, result: Result) -> None:
    """Every layer with its relative error, the worst first. Raises ``Fault``."""
    quantization = result.plan.quantization
    if quantization is None:
        raise AssertionError(result.plan.model)
    ordered = sorted(result.errors.items(), key=lambda item: (-item[1], item[0]))
    report = {
        "model": result.plan.model,
        "version": result.path.name,
        "dtype": quantization.dtype,
        "group_size": quantization.group,
        "clip_search": quantization.search_clip,
        "not_quantized": list(quantization.ignore),
        "mean_relative_error": fmean(result.errors.values()),
        "layers": [{"layer": name, "relative_error": error} for name, error in ordered],
    }
    try:
        replace_file(path, canonical_json(report))
    except OSError as error:
        message = f"{result.path} is built, but its report {path} cannot be written: {error.strerror}"
        raise Fault(FaultKind.FORBIDDEN, message, "name another file") from None
