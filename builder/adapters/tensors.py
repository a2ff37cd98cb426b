"""Tensors of an adapter's file, whatever its format, as float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from builder.checkpoints.dtypes import FLOATS, widened
from builder.checkpoints.layouts.detect import without_training_state
from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.views import View
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from builder.adapters.adapter import Floats


@dataclass(frozen=True)
class Tensors:
    values: Mapping[str, Floats]
    dtype: str
    """As they were stored, by safetensors' code; of a mixture ``F32``."""


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a safetensors, torch or MindSpore file but training state. Raises ``Fault``."""
    views, _ = without_training_state(read_tensor_file(path).tensors)
    values = {name: _floats(path, name, view) for name, view in views.items()}
    dtypes = {view.dtype for view in views.values()}
    return Tensors(values, dtypes.pop() if len(dtypes) == 1 else "F32")


def _floats(path: Path, name: str, view: View) -> Floats:
    import numpy as np

    if view.dtype not in FLOATS:
        message = f"{path}: {name} is {view.dtype}; adapters hold float tensors"
        raise Fault(FaultKind.UNSUPPORTED, message, "save the adapter in float32, float16 or bfloat16")
    raw = b"".join(chunk.tobytes() for chunk in view.chunks())
    values = widened(raw, view.dtype)
    if not np.isfinite(values).all():
        message = f"{path}: {name} holds infinite or NaN values"
        raise Fault(FaultKind.INVALID_MODEL, message, "its training diverged, or the file is damaged")
    return values.reshape(view.shape)
