"""Reads safetensors checkpoints without torch and packs them into the kernels' memory.

Rows are read with ``pread`` through one small buffer a thread, so that resident memory is the packed weights
alone and a file cut short is an error, not a crash.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from contract.faults import Fault, FaultKind
from contract.serving import read_config
from daemon.backends.ms.kernels import FORMAT_BYTES, PANEL_ROWS, Kernels, pointer
from daemon.backends.ms.shape import DecoderShape

_DTYPES: Mapping[str, str] = MappingProxyType({"F32": "float32", "BF16": "bfloat16", "F16": "float16"})
_BUFFER = 4 << 20
_MAX_HEADER = 100 << 20  # as safetensors itself
_LISTED = 5  # names of a long list that an error shows

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A checkpoint tensor and what its rows are.

    Its rows are ``groups`` equal runs, each made of the rows of every role in turn. TeleChat2's
    ``key_value``, per head k then v, is ``Tensor(name, ("k", "v"), groups=kv_heads)``; three matrices one
    after the other are ``Tensor(name, ("q", "k", "v"))``.
    """

    name: str
    roles: tuple[str, ...]
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the rows of a role go: rows [first, first + rows) of a packed matrix or of a block's vector."""

    rows: int
    first: int = 0
    matrix: int | None = None
    part: int = 0
    cols: int = 1
    block: int = 0
    vector: int = 0
    size: int = 0


@dataclass(slots=True)
class WeightPlan:
    """Every tensor a network reads, with the slots of its roles."""

    entries: list[tuple[Tensor, Mapping[str, Slot]]] = field(default_factory=list)
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Endings of names that a checkpoint may hold and nobody reads."""

    def add(self, tensor: Tensor, slots: Mapping[str, Slot]) -> None:
        """Raises ``Fault`` for a role the block does not have: the network file is wrong."""
        unknown = [role for role in tensor.roles if role not in slots]
        if unknown or tensor.groups < 1:
            known = ", ".join(sorted(slots))
            message = (
                f"the network gives {tensor.name} the roles {', '.join(tensor.roles)}; there are {known}"
            )
            raise Fault(FaultKind.INVALID_MODEL, message)
        self.entries.append((tensor, slots))


class Checkpoint:
    """The safetensors files of a folder: one, or several with an index."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers. Raises ``Fault`` when a file is missing, cut short or not safetensors."""
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for path in _files(folder):
            self.tensors.update(_header(path))

    @property
    def total_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def main_dtype(self) -> str:
        """The dtype most of the bytes have."""
        amount: dict[str, int] = {}
        for tensor in self.tensors.values():
            amount[tensor.dtype] = amount.get(tensor.dtype, 0) + tensor.bytes
        return max(amount, key=lambda dtype: amount[dtype])


def _files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise Fault(FaultKind.INVALID_MODEL, f"{index} is not a safetensors index: {error}") from None
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise Fault(
                FaultKind.INVALID_MODEL, f"{index} names {outside[0]!r}, which is not a file beside it"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise Fault(FaultKind.INVALID_MODEL, f"{folder} lacks the weight file {_some(missing)}")
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    message = f"{folder} has neither model.safetensors nor model.safetensors.index.json"
    raise Fault(FaultKind.INVALID_MODEL, message)


def _header(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER:
                raise ValueError("its header is too long")
            entries = json.loads(file.read(length))
        begin, size = 8 + length, path.stat().st_size
        entries.pop("__metadata__", None)
        return {name: _stored(path, entry, begin, size) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault(FaultKind.INVALID_MODEL, f"{path} is not a readable safetensors file: {error}") from None


def _stored(path: Path, entry: Mapping[str, object], begin: int, size: int) -> StoredTensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype} is not one of {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError("shape and data_offsets must be lists")
    first, last = offsets
    name = _DTYPES[str(dtype)]
    expected = FORMAT_BYTES[name]
    for dimension in shape:
        expected *= dimension
    if last - first != expected or first < 0 or begin + last > size:
        raise ValueError("it is cut short, or its header is damaged")
    return StoredTensor(path, name, tuple(shape), begin + first, expected)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def check_names(checkpoint: Checkpoint, plan: WeightPlan) -> None:
    """Raises ``Fault`` when the checkpoint lacks a tensor, has one nobody reads, or one of another shape."""
    wanted = {tensor.name for tensor, _ in plan.entries}
    missing = sorted(wanted - checkpoint.tensors.keys())
    if missing:
        message = f"the checkpoint in {checkpoint.folder} lacks {_some(missing)}"
        raise Fault(FaultKind.INVALID_MODEL, message, details={"missing": missing})
    unread = checkpoint.tensors.keys() - wanted
    surplus = sorted(name for name in unread if not name.endswith(plan.ignored))
    if surplus:
        message = (
            f"the checkpoint in {checkpoint.folder} has tensors the network does not read: {_some(surplus)}"
        )
        raise Fault(FaultKind.INVALID_MODEL, message, details={"surplus": surplus})
    for tensor, slots in plan.entries:
        shape = _expected_shape(tensor, slots)
        stored = checkpoint.tensors[tensor.name]
        if stored.shape != shape:
            message = (
                f"{tensor.name} in {stored.path.name} has shape {list(stored.shape)}, expected {list(shape)}"
            )
            raise Fault(FaultKind.INVALID_MODEL, message)


def _expected_shape(tensor: Tensor, slots: Mapping[str, Slot]) -> tuple[int, ...]:
    chosen = [slots[role] for role in tensor.roles]
    rows = sum(slot.rows for slot in chosen)
    return (rows,) if chosen[0].matrix is None else (rows, chosen[0].cols)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows of a stored tensor and the slot they go to."""

    tensor: str
    stored: StoredTensor
    row: int
    rows: int
    slot: Slot
    first: int


def _pieces(tensor: Tensor, stored: StoredTensor, slots: Mapping[str, Slot]) -> Iterator[_Piece]:
    row_bytes = stored.bytes // max(1, stored.shape[0])
    most = max(PANEL_ROWS, _BUFFER // row_bytes // PANEL_ROWS * PANEL_ROWS)
    row = 0
    for group in range(tensor.groups):
        for role in tensor.roles:
            slot = slots[role]
            count = slot.rows // tensor.groups
            for done in range(0, count, most):
                rows = min(most, count - done)
                yield _Piece(tensor.name, stored, row + done, rows, slot, slot.first + group * count + done)
            row += count


class _Reader(threading.local):
    """A thread's buffer and open files."""

    def __init__(self) -> None:
        self.buffer = np.empty(_BUFFER, np.uint8)
        self.files: dict[Path, int] = {}

    def read(self, path: Path, offset: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Raises ``Fault`` when the file ends early or cannot be read."""
        if size > self.buffer.size:
            self.buffer = np.empty(size, np.uint8)
        view = self.buffer[:size]
        done = 0
        try:
            if path not in self.files:
                self.files[path] = os.open(path, os.O_RDONLY)
            while done < size:
                got = os.preadv(self.files[path], [view[done:].data], offset + done)
                if got == 0:
                    raise Fault(FaultKind.INVALID_MODEL, f"{path} became shorter while it was read")
                done += got
        except OSError as error:
            raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error}") from None
        return view

    def close(self) -> None:
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files.clear()


class WeightLoader:
    """Packs the tensors of a plan in parallel."""

    def __init__(self, kernels: Kernels, checkpoint: Checkpoint, plan: WeightPlan) -> None:
        self._kernels = kernels
        self._checkpoint = checkpoint
        self._plan = plan
        self._done = 0
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []

    def load(self, threads: int, progress: Progress) -> None:
        """Reads and packs everything. Raises ``Fault`` for a checkpoint that does not fit or holds NaN."""
        check_names(self._checkpoint, self._plan)
        pieces = [
            piece
            for tensor, slots in self._plan.entries
            for piece in _pieces(tensor, self._checkpoint.tensors[tensor.name], slots)
        ]
        pieces.sort(key=lambda piece: (piece.stored.path, piece.stored.offset, piece.row))
        total = sum(_piece_bytes(piece) for piece in pieces)
        reader = _Reader()

        def pack(share: Sequence[_Piece]) -> None:
            try:
                for piece in share:
                    self._pack(piece, reader)
                    with self._lock:
                        self._done += _piece_bytes(piece)
                        progress(self._done, total)
            finally:
                reader.close()

        with ThreadPoolExecutor(threads, "weights") as pool:
            list(pool.map(pack, [pieces[first::threads] for first in range(threads)]))

    def _pack(self, piece: _Piece, reader: _Reader) -> None:
        stored, slot = piece.stored, piece.slot
        row_bytes = stored.bytes // stored.shape[0]
        view = reader.read(stored.path, stored.offset + piece.row * row_bytes, piece.rows * row_bytes)
        if slot.matrix is None:
            values = _to_float32(view, stored.dtype)
            with self._lock:  # q, k and v biases share one vector
                self._kernels.set_vector(slot.block, slot.vector, values, size=slot.size, first=piece.first)
            faults = int(np.count_nonzero(~np.isfinite(values)))
        else:
            where = (slot.part, piece.first, piece.rows)
            faults = self._kernels.pack(slot.matrix, where, pointer(view), stored.dtype)
        if faults:
            message = f"{piece.tensor} in {stored.path.name} holds {faults} infinite or NaN values"
            hint = "the checkpoint is damaged, or its values exceed the range of the dtype it is converted to"
            raise Fault(FaultKind.INVALID_MODEL, message, hint)


def _piece_bytes(piece: _Piece) -> int:
    return piece.stored.bytes // piece.stored.shape[0] * piece.rows


def _to_float32(
    view: np.ndarray[tuple[int], np.dtype[np.uint8]], dtype: str
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if dtype == "float32":
        return view.view(np.float32).copy()
    if dtype == "float16":
        return view.view(np.float16).astype(np.float32)
    return (view.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a model will take."""

    weight_bytes: int
    kv_bytes_per_block: int


def estimate(model_dir: Path, dtype: str = "auto") -> MemoryNeed:
    """The memory a model needs, from the headers of its files alone. Raises ``Fault``."""
    shape = DecoderShape.from_config(read_config(model_dir))
    checkpoint = Checkpoint(model_dir)
    target = checkpoint.main_dtype if dtype == "auto" else dtype
    weights = sum(
        tensor.bytes // FORMAT_BYTES[tensor.dtype] * (FORMAT_BYTES[target] if len(tensor.shape) > 1 else 4)
        for tensor in checkpoint.tensors.values()
    )
    return MemoryNeed(weights, shape.kv_bytes_per_block)
