"""Tensors made of others: side by side, cut, turned, cast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.checkpoints.dtypes import narrowed, widened
from builder.checkpoints.views import BUFFER_BYTES, Run, View, gathered
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORTH_A_READ = 4096
"""Bytes of a row's part that are read alone sooner than with the whole row."""


@dataclass(frozen=True)
class Columns(View):
    """Tensors side by side along the last axis."""

    parts: tuple[View, ...]

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.parts[0].shape[:-1], sum(part.shape[-1] for part in self.parts))

    def fill(self, first: int, out: NDArray[Any]) -> None:
        start = 0
        for part in self.parts:
            part.fill(first, out[:, start : start + part.width])
            start += part.width


@dataclass(frozen=True)
class ColumnSlice(View):
    """A range of the last axis."""

    part: View
    first: int
    count: int

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.part.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.part.shape[:-1], self.count)

    def fill(self, first: int, out: NDArray[Any]) -> None:
        flattened = self.part.flat()
        if flattened is None or self.count * out.itemsize < _WORTH_A_READ:
            out[...] = self.part.read(first, len(out))[:, self.first : self.first + self.count]
            return
        for row in range(len(out)):
            start = (first + row) * self.part.width + self.first
            out[row] = flattened.read(start, self.count)[:, 0]


@dataclass(frozen=True)
class Transposed(View):
    """A tensor with its last two axes swapped."""

    part: View

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.part.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        *outer, height, width = self.part.shape
        return (*outer, width, height)

    def fill(self, first: int, out: NDArray[Any]) -> None:
        height, width = self.part.shape[-2:]
        step = max(1, BUFFER_BYTES // max(1, width * out.itemsize))
        done = 0
        while done < len(out):
            matrix, column = divmod(first + done, width)
            count = min(width - column, len(out) - done)
            for row in range(0, height, step):
                block = self.part.read(matrix * height + row, min(step, height - row))
                out[done : done + count, row : row + len(block)] = block[:, column : column + count].T
            done += count

    def chunks(self, buffer_bytes: int = BUFFER_BYTES) -> Iterator[NDArray[Any]]:
        return super().chunks(max(buffer_bytes, 8 * BUFFER_BYTES))  # every chunk reads a whole matrix


@dataclass(frozen=True)
class Cast(View):
    """A float tensor in another float dtype: to nearest, ties to even."""

    part: View
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.part.shape

    def fill(self, first: int, out: NDArray[Any]) -> None:
        import numpy as np

        data = self.part.read(first, len(out)).data.cast("B")
        converted = narrowed(widened(data, self.part.dtype), self.dtype)
        out[...] = np.frombuffer(converted, out.dtype).reshape(out.shape)

    def flat(self) -> View | None:
        flattened = self.part.flat()
        return Cast(flattened, self.dtype) if flattened is not None else None


@dataclass(frozen=True)
class Replicas(View):
    """One tensor of which every rank has a copy. Raises ``Fault`` while reading when they differ."""

    name: str
    parts: tuple[View, ...]

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.parts[0].shape

    def fill(self, first: int, out: NDArray[Any]) -> None:
        self.parts[0].fill(first, out)
        for part in self.parts[1:]:
            if not (part.read(first, len(out)) == out).all():
                message = f"{self.name} should be the same on every rank, and is not"
                hint = "the rank folders are of different checkpoints: fetch them again, together"
                raise Fault(FaultKind.INVALID_MODEL, message, hint)

    def flat(self) -> View | None:
        flattened = [part.flat() for part in self.parts]
        known = tuple(part for part in flattened if part is not None)
        return Replicas(self.name, known) if len(known) == len(flattened) else None


def stacked(parts: Sequence[View], axis: int = 0) -> View:
    """Tensors one after another along an axis."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].shape
    if axis == len(first) - 1 and axis > 0:
        return Columns(tuple(parts))
    shape = (*first[:axis], sum(part.shape[axis] for part in parts), *first[axis + 1 :])
    outer = math.prod(first[:axis])
    inner = [part.rows // outer if outer else 0 for part in parts]
    runs = (
        Run(part, index * rows, rows)
        for index in range(outer)
        for part, rows in zip(parts, inner, strict=True)
    )
    return gathered(shape, runs)


def cut(view: View, axis: int, first: int, count: int) -> View:
    """A range of an axis."""
    if first == 0 and count == view.shape[axis]:
        return view
    if axis == len(view.shape) - 1 and axis > 0:
        return ColumnSlice(view, first, count)
    shape = (*view.shape[:axis], count, *view.shape[axis + 1 :])
    outer = math.prod(view.shape[:axis])
    inner = view.rows // (outer * view.shape[axis])
    stride = inner * view.shape[axis]
    return gathered(
        shape, (Run(view, index * stride + first * inner, count * inner) for index in range(outer))
    )
