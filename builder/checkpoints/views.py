"""Tensors that are not in memory: where their rows lie, and how other tensors are put together from them.

A row is a run along the last axis; a tensor of one axis has rows of one element. Elements are moved as
unsigned integers of their width, so that nothing is rounded on the way and no dtype needs support of its own.
"""

from __future__ import annotations

import bisect
import math
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.checkpoints.safetensors_header import DTYPE_BYTES
from contract.checksums import drop_pages
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUFFER_BYTES = 16 * 1024 * 1024
_WORTH_DROPPING = 1024 * 1024


class SourceFile:
    """A file that stands open while it is read from; ranges are read from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def read_into(self, offset: int, target: Any) -> None:
        """Fill a buffer from here. Raises ``Fault`` when the file has become shorter."""
        view = memoryview(target).cast("B")
        descriptor, done = self._open(), 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                message = f"{self.path} became shorter while it was read"
                raise Fault(FaultKind.INVALID_MODEL, message, "fetch it again")
            done += count
        if done >= _WORTH_DROPPING:
            drop_pages(descriptor, offset, done)

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptor

    def __del__(self) -> None:
        self.close()


class View:
    """A tensor whose rows can be had."""

    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]

    @property
    def width(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.elements

    def fill(self, first: int, out: NDArray[Any]) -> None:
        """Put the rows from ``first`` on into ``out`` [rows, width]."""
        raise NotImplementedError

    def flat(self) -> View | None:
        """The same elements as one axis, where they can be had in any number."""
        return None

    def read(self, first: int, count: int) -> NDArray[Any]:
        """So many rows."""
        import numpy as np

        out = np.empty((count, self.width), _unsigned(self.dtype))
        self.fill(first, out)
        return out

    def chunks(self, buffer_bytes: int = BUFFER_BYTES) -> Iterator[NDArray[Any]]:
        """All rows in order, some at a time."""
        view = self.flat() or self
        height = max(1, buffer_bytes // max(1, view.width * DTYPE_BYTES[view.dtype]))
        if view.width == 0:
            return
        for first in range(0, view.rows, height):
            yield view.read(first, min(height, view.rows - first))


def _unsigned(dtype: str) -> str:
    return f"<u{DTYPE_BYTES[dtype]}"


@dataclass(frozen=True)
class Span:
    offset: int
    length: int


@dataclass(frozen=True)
class Stored(View):
    """A tensor as it lies in a file, in one run of bytes or several."""

    file: SourceFile
    dtype: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]

    def fill(self, first: int, out: NDArray[Any]) -> None:
        import numpy as np

        if not out.flags.c_contiguous:
            whole = np.empty(out.shape, out.dtype)
            self.fill(first, whole)
            out[...] = whole
            return
        start = first * self.width * out.itemsize
        target = out.reshape(-1).data.cast("B")
        for span in self.spans:
            if start < span.length and target:
                count = min(span.length - start, len(target))
                self.file.read_into(span.offset + start, target[:count])
                target, start = target[count:], start + count
            start -= span.length

    def flat(self) -> View:
        return Stored(self.file, self.dtype, (self.elements,), self.spans)


@dataclass(frozen=True)
class Run:
    """Some rows of a tensor."""

    view: View
    first: int
    count: int


@dataclass(frozen=True)
class Rows(View):
    """Rows of other tensors of the same width, run after run."""

    shape: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.runs[0].view.dtype

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(run.count for run in self.runs))

    def fill(self, first: int, out: NDArray[Any]) -> None:
        index, done = bisect.bisect_right(self._ends, first), 0
        while done < len(out):
            run = self.runs[index]
            inside = first + done - (self._ends[index] - run.count)
            count = min(run.count - inside, len(out) - done)
            run.view.fill(run.first + inside, out[done : done + count])
            done, index = done + count, index + 1

    def flat(self) -> View | None:
        flattened = {id(run.view): run.view.flat() for run in self.runs}
        runs = []
        for run in self.runs:
            view = flattened[id(run.view)]
            if view is None:
                return None
            runs.append(Run(view, run.first * run.view.width, run.count * run.view.width))
        return Rows((self.elements,), tuple(runs))


@dataclass(frozen=True)
class Reshaped(View):
    """The same elements in another shape."""

    part: View
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.part.dtype

    def fill(self, first: int, out: NDArray[Any]) -> None:
        flattened = self.part.flat()
        if self.width == self.part.width:
            self.part.fill(first, out)
        elif flattened is None:
            raise ValueError((self.part.shape, self.shape))
        else:
            out[...] = flattened.read(first * self.width, out.size).reshape(out.shape)

    def flat(self) -> View | None:
        return self.part.flat()


def gathered(shape: tuple[int, ...], runs: Iterable[Run]) -> View:
    """Rows of other tensors; the tensor itself when these are all its rows in order."""
    base = [piece for run in runs for piece in _base_runs(run) if piece.count]
    joined: list[Run] = []
    for run in base:
        last = joined[-1] if joined else None
        if last is not None and last.view is run.view and last.first + last.count == run.first:
            joined[-1] = Run(run.view, last.first, last.count + run.count)
        else:
            joined.append(run)
    if len(joined) == 1 and joined[0].count == joined[0].view.rows:
        view = joined[0].view
        return view if view.shape == shape else Reshaped(view, shape)
    return Rows(shape, tuple(joined))


def _base_runs(run: Run) -> Iterator[Run]:
    """The same rows as runs of tensors that are not gathered themselves."""
    if isinstance(run.view, Reshaped) and run.view.width == run.view.part.width:
        yield from _base_runs(Run(run.view.part, run.first, run.count))
        return
    if not isinstance(run.view, Rows):
        yield run
        return
    start = 0
    for inner in run.view.runs:
        first, end = max(run.first, start), min(run.first + run.count, start + inner.count)
        if first < end:
            yield Run(inner.view, inner.first + first - start, end - first)
        start += inner.count
