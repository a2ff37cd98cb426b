"""Reads safetensors checkpoints without torch and packs them into the kernels' memory.

Rows are read with ``pread`` through one small buffer a thread, so that resident memory is the packed weights
alone and a file cut short is an error, not a crash.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.faults import Fault, FaultKind
from contract.serving import read_config
from daemon.backends.ms.checkpoint import Checkpoint, StoredTensor, some
from daemon.backends.ms.kernels import FORMAT_BYTES, PANEL_ROWS, Kernels, pointer
from daemon.backends.ms.quantization import (
    PACKED,
    SCALE,
    SHAPE,
    Formats,
    Scheme,
    Use,
    check_foreign,
    is_packed,
    stored_names,
)
from daemon.backends.ms.shape import DecoderShape

_BUFFER = 4 << 20

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


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
    pairs: tuple[int, int] | None = None
    """(head_dim, rotary_dim) of heads whose rows 2i and 2i + 1 belong together: they are moved to i and
    i + rotary_dim / 2."""

    @property
    def unit(self) -> int:
        """Rows that must stay together."""
        return PANEL_ROWS if self.pairs is None else self.pairs[0]

    def order(self, rows: int) -> npt.NDArray[np.intp] | None:
        """Which source row each of ``rows`` rows is, whole heads of them; ``None``: its own."""
        if self.pairs is None:
            return None
        dim, rotary = self.pairs
        head = np.r_[0:rotary:2, 1:rotary:2, rotary:dim]
        order: npt.NDArray[np.intp] = (np.arange(0, rows, dim)[:, None] + head).ravel()
        return order


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """Of a packed matrix; its ``parts`` take turns by panels."""

    rows: int
    cols: int
    parts: int

    @property
    def panels(self) -> int:
        return -(-self.rows // PANEL_ROWS) * self.parts


@dataclass(slots=True)
class WeightPlan:
    """Every tensor a network reads, with the slots of its roles."""

    entries: list[tuple[Tensor, Mapping[str, Slot]]] = field(default_factory=list)
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
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


def check_names(checkpoint: Checkpoint, plan: WeightPlan, scheme: Scheme | None = None) -> None:
    """Raises ``Fault`` when the checkpoint lacks a tensor, has one nobody reads, or one of another shape."""
    check_foreign(checkpoint)
    wanted = {name for tensor, _ in plan.entries for name in stored_names(checkpoint, tensor.name)}
    missing = sorted(wanted - checkpoint.tensors.keys())
    if missing:
        message = f"the checkpoint in {checkpoint.folder} lacks {some(missing)}"
        raise Fault(FaultKind.INVALID_MODEL, message, details={"missing": missing})
    unread = checkpoint.tensors.keys() - wanted
    surplus = sorted(name for name in unread if not name.endswith(plan.ignored))
    if surplus:
        message = (
            f"the checkpoint in {checkpoint.folder} has tensors the network does not read: {some(surplus)}"
        )
        raise Fault(FaultKind.INVALID_MODEL, message, details={"surplus": surplus})
    for tensor, slots in plan.entries:
        shape = _expected_shape(tensor, slots)
        if scheme is not None and is_packed(checkpoint, tensor.name):
            _check_packed(checkpoint, tensor.name, shape, scheme)
        else:
            _check_stored(checkpoint.tensors[tensor.name], tensor.name, shape, FORMAT_BYTES)


def _expected_shape(tensor: Tensor, slots: Mapping[str, Slot]) -> tuple[int, ...]:
    chosen = [slots[role] for role in tensor.roles]
    rows = sum(slot.rows for slot in chosen)
    return (rows,) if chosen[0].matrix is None else (rows, chosen[0].cols)


def _check_packed(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], scheme: Scheme) -> None:
    rows, cols = shape if len(shape) == 2 else (*shape, 1)
    if len(shape) != 2:
        raise Fault(FaultKind.INVALID_MODEL, f"{name + PACKED} is quantized; vectors must be floats")
    stored = checkpoint.tensors
    _check_stored(stored[name + PACKED], name + PACKED, (rows, scheme.words(cols)), ("int32",))
    _check_stored(stored[name + SCALE], name + SCALE, (rows, scheme.groups(cols)), FORMAT_BYTES)
    _check_stored(stored[name + SHAPE], name + SHAPE, (2,), ("int64", "int32"))
    reader = _Reader()
    tensor = stored[name + SHAPE]
    kind = np.int64 if tensor.dtype == "int64" else np.int32
    said = reader.read(tensor.path, tensor.offset, tensor.bytes).view(kind).tolist()
    reader.close()
    if said != [rows, cols]:
        message = f"{name + SHAPE} in {tensor.path.name} says {said}, expected {[rows, cols]}"
        raise Fault(FaultKind.INVALID_MODEL, message)


def _check_stored(stored: StoredTensor, name: str, shape: tuple[int, ...], dtypes: Container[str]) -> None:
    if stored.shape != shape:
        message = f"{name} in {stored.path.name} has shape {list(stored.shape)}, expected {list(shape)}"
        raise Fault(FaultKind.INVALID_MODEL, message)
    if stored.dtype not in dtypes:
        raise Fault(FaultKind.INVALID_MODEL, f"{name} in {stored.path.name} is {stored.dtype}")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows of a stored tensor and the slot they go to."""

    tensor: str
    stored: StoredTensor
    row: int
    rows: int
    slot: Slot
    first: int


def _pieces(name: str, tensor: Tensor, stored: StoredTensor, slots: Mapping[str, Slot]) -> Iterator[_Piece]:
    row_bytes = stored.bytes // max(1, stored.shape[0])
    row = 0
    for group in range(tensor.groups):
        for role in tensor.roles:
            slot = slots[role]
            count = slot.rows // tensor.groups
            most = max(slot.unit, _BUFFER // row_bytes // slot.unit * slot.unit)
            for done in range(0, count, most):
                rows = min(most, count - done)
                yield _Piece(name, stored, row + done, rows, slot, slot.first + group * count + done)
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

    def __init__(
        self, kernels: Kernels, checkpoint: Checkpoint, plan: WeightPlan, scheme: Scheme | None = None
    ) -> None:
        self._scheme = scheme
        self._kernels = kernels
        self._checkpoint = checkpoint
        self._plan = plan
        self._done = 0
        self._not_finite: dict[str, int] = {}
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []

    def load(self, threads: int, progress: Progress) -> None:
        """Reads and packs everything. Raises ``Fault`` for a checkpoint that does not fit."""
        check_names(self._checkpoint, self._plan, self._scheme)
        pieces = [
            piece
            for tensor, slots in self._plan.entries
            for name in stored_names(self._checkpoint, tensor.name)
            if not name.endswith(SHAPE)
            for piece in _pieces(name, tensor, self._checkpoint.tensors[name], slots)
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

    @property
    def all_finite(self) -> bool:
        """After ``load``: whether every value is."""
        return not self._not_finite

    def check_finite(self, *, allow: bool) -> None:
        """After ``load``. Raises ``Fault`` for values that are infinite or NaN, unless they may be."""
        counts = sorted(self._not_finite.items())
        found = [f"{where} holds {count} infinite or NaN values" for where, count in counts]
        if not found:
            return
        if allow:
            _log.warning("served all the same: %s", some(found))
            return
        hint = (
            "the checkpoint is damaged, or its values exceed the range of the dtype it is converted to; "
            "--ms-allow-nonfinite serves it all the same"
        )
        raise Fault(FaultKind.INVALID_MODEL, some(found), hint, {"not_finite": self._not_finite})

    def _pack(self, piece: _Piece, reader: _Reader) -> None:
        stored, slot = piece.stored, piece.slot
        row_bytes = stored.bytes // stored.shape[0]
        view = reader.read(stored.path, stored.offset + piece.row * row_bytes, piece.rows * row_bytes)
        order = slot.order(piece.rows)
        if order is not None:
            view = view.reshape(piece.rows, row_bytes)[order].ravel()
        if slot.matrix is None:
            values = _to_float32(view, stored.dtype)
            with self._lock:  # q, k and v biases share one vector
                self._kernels.set_vector(slot.block, slot.vector, values, size=slot.size, first=piece.first)
            faults = int(np.count_nonzero(~np.isfinite(values)))
        else:
            faults = self._pack_rows(piece, slot.matrix, pointer(view))
        if faults:
            where = f"{piece.tensor} in {stored.path.name}"
            with self._lock:
                self._not_finite[where] = self._not_finite.get(where, 0) + faults

    def _pack_rows(self, piece: _Piece, matrix: int, source: int) -> int:
        where, dtype = (piece.slot.part, piece.first, piece.rows), piece.stored.dtype
        if not piece.stored.is_float:
            self._kernels.pack_whole(matrix, where, source)
            return 0
        if piece.tensor.endswith(SCALE):
            return self._kernels.pack_scales(matrix, where, source, dtype)
        return self._kernels.pack(matrix, where, source, dtype)


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


def estimate(
    model_dir: Path, dtype: str = "auto", kv_dtype: str = "auto", head_dtype: str = "auto"
) -> MemoryNeed:
    """The memory a model needs, from the headers of its files alone. Raises ``Fault``."""
    config = read_config(model_dir)
    shape = DecoderShape.from_config(config)
    checkpoint = Checkpoint(model_dir)
    formats = Formats.of_model(checkpoint, config, dtype, head_dtype)
    # Of two matrices as long as the vocabulary one is the embedding and one the head.
    uses: list[Use] = ["table", "head"]
    weights = 0
    for name, tensor in checkpoint.tensors.items():
        is_matrix = len(tensor.shape) > 1 and tensor.is_float and not name.endswith(SCALE)
        use = uses.pop(0) if is_matrix and tensor.shape[0] == shape.vocab and uses else "linear"
        weights += formats.bytes_of(name, tensor, use)
    return MemoryNeed(weights, shape.kv_bytes_per_block(formats.of_cache(kv_dtype)))
