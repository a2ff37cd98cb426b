"""A LoRA adapter in memory: what it changes in which tensor of the base model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from contract.faults import Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LowRank:
    """``W' = W + scale * b @ a``; with a magnitude, rows of that length (DoRA)."""

    a: Floats
    """[r, in]"""
    b: Floats
    """[out, r]"""
    scale: float
    magnitude: Floats | None = None
    """[out]"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def merged(self, rows: Floats, first: int) -> Floats:
        """The rows of ``W'`` from ``first`` on, given those of ``W``; float32 throughout."""
        import numpy as np

        last = first + len(rows)
        changed: Floats = rows + np.float32(self.scale) * (self.b[first:last] @ self.a)
        if self.magnitude is None:
            return changed
        lengths = np.sqrt(np.square(changed, dtype=np.float64).sum(axis=1))
        factors = (self.magnitude[first:last] / lengths).astype(np.float32)
        scaled: Floats = changed * factors[:, None]
        return scaled


@dataclass(frozen=True)
class Added:
    """A vector added to a bias: ``lora_bias``."""

    values: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def merged(self, rows: Floats, first: int) -> Floats:
        return rows + self.values[first : first + len(rows)]


@dataclass(frozen=True)
class Saved:
    """A tensor that the adapter brings whole: ``modules_to_save`` and trained biases."""

    values: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def merged(self, rows: Floats, first: int) -> Floats:
        return self.values[first : first + len(rows)]


Change = LowRank | Added | Saved


@dataclass(frozen=True)
class Adapter:
    """One adapter, under the base model's HuggingFace names."""

    source: str
    """Where it was read, for messages."""
    changes: Mapping[str, Change]
    """Tensor of the base -> what becomes of it."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of what was read."""
    base_model: str | None = None
    dtype: str = "F32"
    """Its tensors' as they were stored, by safetensors' code."""

    def __str__(self) -> str:
        """Its folder's or file's name, and the beginning of the hash of all that was read."""
        digest = hashlib.sha256("".join(sorted(self.files.values())).encode()).hexdigest()
        return f"{Path(self.source).name} ({digest[:16]})"

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
        """Whether it is for the model with these tensors."""
        problems: list[Problem] = []
        strange = [name for name in self.changes if name not in shapes]
        if strange:
            shown = ", ".join(strange[:4]) + (", ..." if len(strange) > 4 else "")
            message = f"changes {len(strange)} tensors that the model does not have: {shown}"
            problems.append(Problem(self.source, message, _other_base(self.base_model)))
        for name, change in self.changes.items():
            if name in shapes and shapes[name] != change.shape:
                message = f"changes a matrix of {list(change.shape)}, the model's has {list(shapes[name])}"
                problems.append(Problem(f"{self.source}  {name}", message, _other_base(self.base_model)))
        return problems[:12]


def _other_base(name: str | None) -> str:
    trained = f": it was trained on {name}" if name else ""
    return f"take an adapter of this model{trained}"
