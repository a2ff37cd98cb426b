"""Reads an adapter, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from builder.adapters.adapter import Adapter
from builder.adapters.peft import read_peft
from contract.faults import Fault, FaultKind


def read_adapter(path: Path) -> Adapter:
    """Raises ``Fault`` for what is no adapter, damaged, or of a kind that cannot be merged."""
    if path.is_dir():
        return read_peft(path)
    message = f"{path} is not an adapter's folder"
    raise Fault(FaultKind.UNSUPPORTED, message, "name the folder that PEFT, LLaMA-Factory or XTuner wrote")
