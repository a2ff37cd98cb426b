"""The ``inspect`` command: what a model directory is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from builder.forecast import size_text
from builder.model_directory import read_directory
from builder.quantization import read_quantization
from builder.report import say
from contract.networks import is_known


def inspect_directory(directory: Path) -> dict[str, Any]:
    """The facts, JSON-ready. Raises ``Fault``."""
    found = read_directory(directory)
    manifest = found.manifest
    network = manifest.files.get(found.serving.network or "")
    return {
        "model": found.model,
        "version": found.version,
        "path": str(found.path),
        "serving": msgspec.to_builtins(found.serving),
        "architecture": {key: value for key, value in found.config.items() if key != "serving"},
        "parameters": found.parameters,
        "tensors": len(found.weights.tensors),
        "dtypes": found.weights.dtypes,
        "bytes": manifest.size,
        "network_known": network is not None and network.sha256 is not None and is_known(network.sha256),
        "files": [
            {"name": name, "size": entry.size, "sha256": entry.sha256}
            for name, entry in manifest.files.items()
        ],
        "provenance": msgspec.to_builtins(manifest.provenance),
        "problems": [problem.to_dict() for problem in found.weights.problems],
    }


def print_inspection(found: dict[str, Any]) -> None:
    """The facts for people."""
    serving, provenance = found["serving"], found["provenance"]
    limits = serving["limits"]
    dtypes = ", ".join(f"{code} {size_text(size)}" for code, size in found["dtypes"].items())
    trusted = "known to MindPort" if found["network_known"] else "unknown code; needs --trust-model-code"
    lines = {
        "model": f"{found['model']} version {found['version']}",
        "path": found["path"],
        "family": serving.get("family", "-"),
        "backend": serving["backend"],
        "parameters": f"{found['parameters']:,} in {found['tensors']} tensors ({dtypes})",
        "size": size_text(found["bytes"]),
        "limits": f"{limits['max_seq_len']} tokens, prompt {limits['max_input_tokens']}",
        "chat": serving.get("prompt", {}).get("chat_template", "no template"),
        "network": f"{serving.get('network', '-')} ({trusted})",
        "recipe": provenance["recipe"],
        "built by": provenance["builder"],
    }
    for name, value in lines.items():
        say(f"{name:11}{value}")
    if "quantization_config" in found["architecture"]:
        say(f"quantized  {read_quantization(found['architecture'])}")
    for name, folder in serving.get("adapters", {}).items():
        say(f"adapter    {name}, in {folder}")
    for note in provenance.get("notes", []):
        say(f"note       {note}")
    say("files")
    for entry in found["files"]:
        digest = entry["sha256"][:12] if entry["sha256"] else "not hashed"
        say(f"  {entry['name']:40} {size_text(entry['size']):>12}  {digest}")
    for problem in found["problems"]:
        say(f"problem    {problem['where']}: {problem['message']}")
