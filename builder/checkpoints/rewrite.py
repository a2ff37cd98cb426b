"""Writes a weight file anew: an adapter merged, matrices quantized, other tensors converted, some left out.

The publisher's file is read once, from front to back, through a buffer of rows; every result goes to its
place in the new file, where all places are known beforehand. The new file is hashed when it is whole.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.checkpoints.content import Content
from builder.checkpoints.dtypes import DTYPES, FLOATS, convert_values, narrowed, widened
from builder.checkpoints.group_quantizer import QuantizedRows, pack, quantize_rows
from builder.checkpoints.safetensors_header import DTYPE_BYTES, Header, TensorEntry, write_header
from builder.quantization import PACKED, SCALE, SHAPE, Quantization
from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.manifest import FileEntry

if TYPE_CHECKING:
    from builder.adapters.adapter import Change
    from builder.checkpoints.transfer import Carrier, Transferred
    from builder.plan import PlannedWeights

_BUFFER_BYTES = 16 * 1024 * 1024
_BLOCK_ELEMENTS = 128 * 1024
"""What one thread rounds at a time: its arrays stay in the processor's cache."""


@dataclass(frozen=True)
class Changes:
    """What is different in the file to be written."""

    dtype: str | None = None
    """For float tensors, by its config.json name."""
    quantization: Quantization | None = None
    modules: frozenset[str] = frozenset()
    """Linear layers to quantize."""
    left_out: frozenset[str] = frozenset()
    """Tensors that the model does not have."""
    merges: Mapping[str, Change] = field(default_factory=dict)
    """What an adapter makes of tensors, in float32 and before anything else."""

    def outputs(self, tensor: TensorEntry) -> Iterator[TensorEntry]:
        """What becomes of a tensor; places are given later."""
        if tensor.name in self.left_out:
            return
        code = DTYPES[self.dtype] if self.dtype and tensor.dtype in FLOATS else tensor.dtype
        module = tensor.name.removesuffix(".weight")
        if self.quantization is None or module == tensor.name or module not in self.modules:
            yield replace(tensor, dtype=code)
            return
        yield TensorEntry(f"{module}.{SHAPE}", "I64", (2,), 0, 0)
        yield TensorEntry(f"{module}.{PACKED}", "I32", self.quantization.packed_shape(tensor.shape), 0, 0)
        yield TensorEntry(f"{module}.{SCALE}", code, self.quantization.scale_shape(tensor.shape), 0, 0)


def rewritten_header(header: Header, changes: Changes) -> Header:
    """The header of the new file; the same object when nothing changes."""
    outputs = [output for tensor in header.tensors for output in changes.outputs(tensor)]
    if outputs == list(header.tensors) and not changes.merges.keys() & {tensor.name for tensor in outputs}:
        return header
    # Widest elements first, as the format's own writer does it: every tensor is aligned.
    outputs.sort(key=lambda tensor: -DTYPE_BYTES[tensor.dtype])
    position, placed = 0, []
    for tensor in outputs:
        end = position + tensor.elements * DTYPE_BYTES[tensor.dtype]
        placed.append(replace(tensor, start=position, end=end))
        position = end
    start = len(write_header(placed, header.metadata))
    return Header(tuple(placed), header.metadata, start, start + position, "")


def rewrite(weights: PlannedWeights, folder: Path, carrier: Carrier) -> Transferred:
    """Write one file into ``folder``. Raises ``Fault``, ``OSError`` or ``CancelledError``."""
    from builder.checkpoints.transfer import Transferred

    target = folder / weights.name
    before, after = weights.source.header, weights.header
    threads = len(os.sched_getaffinity(0))
    with Content(weights.source) as content, target.open("xb", buffering=0) as writer:
        os.ftruncate(writer.fileno(), after.size)
        _write_at(writer.fileno(), 0, write_header(list(after.tensors), after.metadata))
        with ThreadPoolExecutor(threads, "quantize") as pool:
            work = _Work(weights, content, writer.fileno(), carrier, pool)
            work.read(before.data_start)
            for tensor in before.tensors:
                work.bring(tensor)
        os.fsync(writer.fileno())
    digest = work.original.hexdigest()
    carrier.remember(weights.source, digest)
    written = FileEntry(after.size, sha256_of_file(target))
    return Transferred(written, FileEntry(before.size, digest), work.errors)


@dataclass
class _Work:
    """One file on its way."""

    weights: PlannedWeights
    content: Content
    descriptor: int
    """To write to."""
    carrier: Carrier
    pool: ThreadPoolExecutor
    original: Any = field(default_factory=hashlib.sha256)
    errors: dict[str, float] = field(default_factory=dict)
    """Layer -> root of squared error over squared weights."""

    def __post_init__(self) -> None:
        self._places = {tensor.name: tensor for tensor in self.weights.header.tensors}

    def read(self, count: int) -> bytes:
        """The publisher's next bytes."""
        self.carrier.check()
        raw = self.content.read(count)
        self.original.update(raw)
        return raw

    def bring(self, tensor: TensorEntry) -> None:
        """Put what becomes of a tensor in its place."""
        module = tensor.name.removesuffix(".weight")
        quantization = self.weights.changes.quantization
        if tensor.name not in self._places and f"{module}.{PACKED}" in self._places and quantization:
            self._quantize(tensor, module, quantization)
        elif tensor.name in self.weights.changes.merges:
            self._merge(tensor)
        else:
            self._convert(tensor)

    def _convert(self, tensor: TensorEntry) -> None:
        place, done = self._places.get(tensor.name), 0
        step = _BUFFER_BYTES // DTYPE_BYTES[tensor.dtype] * DTYPE_BYTES[tensor.dtype]
        for start in range(tensor.start, tensor.end, step):
            raw = self.read(min(step, tensor.end - start))
            if place is not None:
                converted = convert_values(raw, tensor, place)
                self.carrier.inspect(converted, place, self.weights.source)
                done += self._write(place, done, converted)

    def _merge(self, tensor: TensorEntry) -> None:
        place, done, first = self._places[tensor.name], 0, 0
        rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
        row_bytes = width * DTYPE_BYTES[tensor.dtype]
        height = max(1, _BUFFER_BYTES // max(1, row_bytes))
        for first in range(0, rows, height):
            values = widened(self.read(min(height, rows - first) * row_bytes), tensor.dtype)
            changed = self._changed(values.reshape(-1, *tensor.shape[1:]), tensor, first)
            done += self._write(place, done, narrowed(changed, place.dtype))

    def _changed(self, rows: Any, tensor: TensorEntry, first: int) -> Any:
        """Rows as the adapter leaves them; as they are where it does not touch the tensor."""
        change = self.weights.changes.merges.get(tensor.name)
        return (
            rows if change is None else _finite(change.merged(rows, first), tensor, self.weights.source.path)
        )

    def _quantize(self, tensor: TensorEntry, module: str, quantization: Quantization) -> None:
        import numpy as np

        places = [self._places[f"{module}.{part}"] for part in (PACKED, SCALE, SHAPE)]
        self._write(places[2], 0, np.array(tensor.shape, "<i8").tobytes())
        packed = scaled = 0
        error = weight = 0.0
        for part in self._all_rounded(tensor, quantization, places[1].dtype):
            packed += self._write(places[0], packed, pack(part.values, quantization.bits))
            scaled += self._write(places[1], scaled, part.scales)
            error, weight = error + part.squared_error, weight + part.squared_weight
        self.errors[module] = (error / weight) ** 0.5 if weight else 0.0

    def _all_rounded(
        self, tensor: TensorEntry, quantization: Quantization, scale_dtype: str
    ) -> Iterator[QuantizedRows]:
        """All rows of a matrix, in order. The next buffer is read while the last one is rounded."""
        rows, columns = tensor.shape
        row_bytes = columns * DTYPE_BYTES[tensor.dtype]
        height = max(1, _BUFFER_BYTES // max(1, row_bytes))
        before: Iterator[QuantizedRows] = iter(())
        for first in range(0, rows, height):
            raw = self.read(min(height, rows - first) * row_bytes)
            started = self._rounded((tensor, first), raw, quantization, scale_dtype)
            yield from before
            before = started
        yield from before

    def _rounded(
        self, place: tuple[TensorEntry, int], raw: bytes, quantization: Quantization, scale_dtype: str
    ) -> Iterator[QuantizedRows]:
        """The rows of a buffer, block by block, in order; work on them begins at once."""
        tensor, first = place
        columns = tensor.shape[1]
        height = max(1, _BLOCK_ELEMENTS // columns)
        size = height * columns * DTYPE_BYTES[tensor.dtype]
        blocks = [memoryview(raw)[start : start + size] for start in range(0, len(raw), size)]

        def round_block(number: int, block: memoryview) -> QuantizedRows:
            values = _finite(widened(block, tensor.dtype), tensor, self.weights.source.path)
            rows = self._changed(values.reshape(-1, columns), tensor, first + number * height)
            form = (quantization.bits, quantization.group, scale_dtype)
            return quantize_rows(rows, *form, search_clip=quantization.search_clip)

        return self.pool.map(round_block, itertools.count(), blocks)

    def _write(self, place: TensorEntry, offset: int, data: bytes) -> int:
        start = self.weights.header.data_start + place.start + offset
        _write_at(self.descriptor, start, data)
        self.carrier.on_bytes(len(data))
        return len(data)


def _finite(values: Any, tensor: TensorEntry, path: Path) -> Any:
    import numpy as np

    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        message = f"{path}: {tensor.name} holds infinite or NaN values, which have no integer"
        raise Fault(FaultKind.INVALID_MODEL, message, "the checkpoint is damaged: fetch the file again")
    return values


def _write_at(descriptor: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
