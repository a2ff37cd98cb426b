"""What the commands print: results on stdout, faults and notes on stderr, one JSON object with ``--json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from builder.forecast import Forecast, size_text
from contract.faults import Fault

if TYPE_CHECKING:
    from builder.inputs import Inputs
    from builder.package import Result
    from builder.plan import Plan

_WORST = 10


def say(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(text + "\n")


def remark(text: str) -> None:
    """A line for people beside the result."""
    sys.stderr.write(text + "\n")


def print_json(value: Any) -> None:
    """The result for programs."""
    say(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True))


def print_fault(fault: Fault, as_json: bool) -> None:
    """A fault for people on stderr, or for programs on stdout."""
    if as_json:
        print_json({"error": fault.to_dict()})
        return
    remark(f"error: {fault.message}")
    if fault.hint:
        remark(f"hint: {fault.hint}")


def package_dict(result: Result) -> dict[str, Any]:
    """``builder package --json``."""
    manifest = result.manifest
    entries = manifest.files if manifest is not None else {}
    return {
        "status": result.status,
        "model": result.plan.model,
        "version": result.path.name,
        "path": str(result.path),
        "bytes": result.plan.size,
        "dtype": result.plan.serving.dtype,
        "quantization": _quantization_dict(result),
        "fingerprint": result.plan.fingerprint,
        "files": plan_files(result.plan),
        "not_hashed": sorted(name for name, entry in entries.items() if entry.sha256 is None),
        "notes": list(result.plan.notes),
        "forecast": result.plan.forecast.to_dict(),
    }


def worst_layers(errors: Mapping[str, float]) -> list[tuple[str, float]]:
    """The layers that quantization changed most, and by how much relative to their weights."""
    return sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:_WORST]


def _quantization_dict(result: Result) -> dict[str, Any] | None:
    quantization = result.plan.quantization
    if quantization is None:
        return None
    worst = [{"layer": name, "relative_error": error} for name, error in worst_layers(result.errors)]
    return {
        "dtype": quantization.dtype,
        "group_size": quantization.group,
        "ignore": list(quantization.ignore),
        "worst_layers": worst,
    }


def plan_files(plan: Plan) -> list[dict[str, Any]]:
    """Every file of a plan: name, size and how it comes to be."""
    small = [{"name": name, "size": len(content), "method": "write"} for name, content in plan.files.items()]
    large = [{"name": entry.name, "size": entry.size, "method": entry.method} for entry in plan.weights]
    return sorted(small + large, key=lambda entry: str(entry["name"]))


def print_package(result: Result, quiet: bool) -> None:
    """``builder package`` for people."""
    if not quiet:
        for note in result.plan.notes:
            remark(f"note: {note}")
    if result.status == "planned":
        say(f"would write {result.path} ({size_text(result.plan.size)}):")
        for entry in plan_files(result.plan):
            say(f"  {entry['name']:40} {size_text(entry['size']):>12}  {entry['method']}")
        say("nothing was written.")
        return
    if result.status == "already_built":
        say(f"already built: {result.path}")
        return
    say(f"built {result.path} ({size_text(result.plan.size)}, {result.plan.serving.dtype})")
    open_entries = (
        [name for name, entry in result.manifest.files.items() if entry.sha256 is None]
        if result.manifest
        else []
    )
    if result.errors and not quiet:
        worst = ", ".join(f"{name} {error:.2%}" for name, error in worst_layers(result.errors)[:3])
        remark(f"quantized {len(result.errors)} layers; changed most: {worst}")
    if open_entries and not quiet:
        remark(f"not hashed: {', '.join(open_entries)} (linked without reading)")
        remark(f"hint: builder verify --hash {result.path}")
    if not quiet:
        raw = "" if result.plan.serving.prompt.chat_template else " --raw"
        remark(f"next: daemon start, then: client generate -m {result.plan.model}{raw} 你好")


def check_dict(inputs: Inputs, foreseen: Forecast) -> dict[str, Any]:
    """``builder check --json``."""
    return {
        "model": inputs.recipe.name,
        "family": inputs.family.name,
        "architecture": inputs.architecture.values,
        "disagreements": [found.to_dict() for found in inputs.architecture.disagreements],
        "weights": {
            "files": [str(file.path) for file in inputs.weights.files],
            "bytes": foreseen.weights_bytes,
            "parameters": inputs.parameters,
            "dtypes": inputs.weights.dtypes,
        },
        "tokenizer": {"path": str(inputs.locations.tokenizer), "pieces": inputs.tokenizer.pieces},
        "yaml": str(inputs.locations.yaml) if inputs.locations.yaml else None,
        "forecast": foreseen.to_dict(),
    }


def print_check(inputs: Inputs, foreseen: Forecast) -> None:
    """``builder check`` for people."""
    for disagreement in inputs.architecture.disagreements:
        remark(f"note: {disagreement}")
    dtypes = ", ".join(f"{code} {size_text(size)}" for code, size in inputs.weights.dtypes.items())
    say(f"{inputs.recipe.name}: the inputs are sound")
    say(f"yaml       {inputs.locations.yaml or 'none; derived when packaged'}")
    say(f"tokenizer  {inputs.locations.tokenizer}, {inputs.tokenizer.pieces} tokens")
    say(f"tensors    {len(inputs.weights.tensors)} in {len(inputs.weights.files)} files ({dtypes})")
    if inputs.quantization is not None:
        say(f"quantized  {inputs.quantization}")
    for line in foreseen.lines():
        say(line)
