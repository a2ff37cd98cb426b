"""LoRA adapters beside a loaded model: read in PEFT's form, packed beside the matrices they change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contract.adapters import TENSORS_NAME, AdapterConfig, parse_name, read_adapter_config
from contract.faults import Fault, FaultKind, Problem, fault_of_problems
from daemon.backends.ms.checkpoint import StoredTensor, read_header, some
from daemon.backends.ms.kernels import FORMAT_BYTES, PANEL_ROWS, Kernels, LowRank, pointer
from daemon.backends.ms.weights import MatrixShape, Slot, Tensor, WeightPlan

_MERGE = "merge it into the weights: builder package --adapter"
_RAW = {4: np.uint32, 2: np.uint16}

Raw = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
"""Floats of any format, by their bits."""


@dataclass(frozen=True, slots=True)
class Half:
    """lora_A or lora_B of a module."""

    values: Raw
    dtype: str


@dataclass(frozen=True, slots=True)
class Pair:
    a: Half
    b: Half
    scale: float


class AdapterLoader:
    """Packs adapters for one model."""

    def __init__(self, kernels: Kernels, plan: WeightPlan, matrices: Mapping[int, MatrixShape]) -> None:
        self._kernels = kernels
        self._targets = {
            tensor.name.removesuffix(".weight"): (tensor, slots)
            for tensor, slots in plan.entries
            if all(slots[role].matrix in matrices for role in tensor.roles)
        }
        self._matrices = matrices

    def load(self, folder: Path) -> tuple[int, int]:
        """The kernels' handle and the bytes it takes. Raises ``Fault``: not for this model, or damaged."""
        pairs = _read(folder)
        strange = sorted(set(pairs) - set(self._targets))
        if strange:
            message = f"the adapter in {folder} changes what cannot be changed while serving: {some(strange)}"
            hint = f"take an adapter of this model, or {_MERGE}"
            raise Fault(FaultKind.UNSUPPORTED, message, hint)
        changes = self._by_matrix(folder, pairs)
        adapter = self._kernels.new_adapter()
        try:
            taken = sum(self._add(adapter, matrix, parts) for matrix, parts in changes.items())
        except BaseException:
            self._kernels.free_adapter(adapter)
            raise
        return adapter, taken

    def _by_matrix(self, folder: Path, pairs: Mapping[str, Pair]) -> dict[int, list[tuple[Pair, list[_Run]]]]:
        """Matrix -> what changes it, and which of its rows."""
        changes: dict[int, list[tuple[Pair, list[_Run]]]] = {}
        for module, pair in pairs.items():
            tensor, slots = self._targets[module]
            runs: dict[int, list[_Run]] = {}
            for matrix, run in _runs(tensor, slots):
                runs.setdefault(matrix, []).append(run)
            rows = sum(slots[role].rows for role in tensor.roles)
            found = [pair.b.values.shape[0], pair.a.values.shape[1]]
            wanted = [rows, slots[tensor.roles[0]].cols]
            if found != wanted:
                message = f"the adapter in {folder} changes {module} as {found}; it is {wanted}"
                raise Fault(FaultKind.INVALID_MODEL, message, "take an adapter of this model")
            for matrix, listed in runs.items():
                changes.setdefault(matrix, []).append((pair, listed))
        return changes

    def _add(self, adapter: int, matrix: int, parts: list[tuple[Pair, list[_Run]]]) -> int:
        shape, a_dtype, b_dtype = self._matrices[matrix], parts[0][0].a.dtype, parts[0][0].b.dtype
        rows, cols = sum(pair.a.values.shape[0] for pair, _ in parts), shape.cols
        stacked = np.ascontiguousarray(np.concatenate([pair.a.values for pair, _ in parts]))
        down = self._kernels.new_matrix(rows, cols, dtype=a_dtype)
        try:
            self._kernels.pack(down, (0, 0, rows), pointer(stacked), a_dtype)
            ranks = [pair.a.values.shape[0] for pair, _ in parts]
            scales = np.repeat(np.array([pair.scale for pair, _ in parts], np.float32), ranks)
            spans, up = _panels(shape, parts)
            return self._kernels.set_low_rank(adapter, matrix, LowRank(down, scales, spans, up, b_dtype))
        finally:
            self._kernels.free_matrix(down)  # the adapter has a copy


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows of a stored matrix and where they go."""

    source: npt.NDArray[np.intp]
    part: int
    first: int


def _runs(tensor: Tensor, slots: Mapping[str, Slot]) -> Iterator[tuple[int, _Run]]:
    row = 0
    for group in range(tensor.groups):
        for role in tensor.roles:
            slot = slots[role]
            count = slot.rows // tensor.groups
            order = slot.order(count)
            source = row + (np.arange(count) if order is None else order)
            if slot.matrix is not None:
                yield slot.matrix, _Run(source, slot.part, slot.first + group * count)
            row += count


def _panels(
    shape: MatrixShape, parts: Iterable[tuple[Pair, list[_Run]]]
) -> tuple[npt.NDArray[np.int64], Raw]:
    """Per panel which columns of U it uses; and U by panels."""
    listed = list(parts)
    ranks = [pair.b.values.shape[1] for pair, _ in listed]
    starts = np.cumsum([0, *ranks])
    per_part = shape.panels // shape.parts
    whole = np.zeros((shape.parts, per_part * PANEL_ROWS, starts[-1]), listed[0][0].b.values.dtype)
    first = np.full((shape.parts, per_part), starts[-1], np.int64)
    last = np.zeros((shape.parts, per_part), np.int64)
    for (pair, runs), begin, rank in zip(listed, starts, ranks, strict=False):
        for run in runs:
            rows = slice(run.first, run.first + len(run.source))
            whole[run.part, rows, begin : begin + rank] = pair.b.values[run.source]
            touched = slice(run.first // PANEL_ROWS, -(-rows.stop // PANEL_ROWS))
            np.minimum(first[run.part, touched], begin, out=first[run.part, touched])
            np.maximum(last[run.part, touched], begin + rank, out=last[run.part, touched])
    # Panels of the parts take turns.
    spans = np.stack([first.T.ravel(), np.maximum(last - first, 0).T.ravel()], 1)
    spans[spans[:, 1] == 0, 0] = 0
    panels = whole.reshape(shape.parts, per_part, PANEL_ROWS, -1).swapaxes(0, 1)
    return spans, np.ascontiguousarray(panels)


def _read(folder: Path) -> dict[str, Pair]:
    """Module -> its pair. Raises ``Fault`` for what is not two low-rank halves a module."""
    config = read_adapter_config(folder)
    path = folder / TENSORS_NAME
    if not path.is_file():
        message = f"{folder} has no {TENSORS_NAME}"
        raise Fault(FaultKind.NOT_FOUND, message, "convert it: builder package --with-adapter takes any form")
    halves: dict[str, dict[str, Half]] = {}
    problems: list[Problem] = []
    for name, stored in read_header(path).items():
        module, part = parse_name(name)
        if part not in ("A", "B"):
            problems.append(Problem(f"{path}  {name}", f"is a {part} tensor, not a low-rank half", _MERGE))
        elif stored.dtype not in FORMAT_BYTES or len(stored.shape) != 2:
            found = f"is {stored.dtype} {list(stored.shape)}"
            problems.append(Problem(f"{path}  {name}", found, "adapters hold matrices of floats"))
        else:
            halves.setdefault(module, {})[part] = _half(stored)
    pairs = {}
    for module, found_halves in halves.items():
        pair, problem = _pair(module, found_halves, config)
        if pair is None:
            problems.append(Problem(f"{path}  {module}", problem, "the adapter is damaged: fetch it again"))
        else:
            pairs[module] = pair
    if problems:
        raise fault_of_problems(FaultKind.UNSUPPORTED, f"the adapter in {folder}", problems[:8])
    if not pairs:
        hint = "name the folder that holds tensors ...lora_A... and ...lora_B..."
        raise Fault(FaultKind.INVALID_MODEL, f"{path} changes nothing: it holds no LoRA tensors", hint)
    return _one_dtype(pairs)


def _pair(module: str, halves: Mapping[str, Half], config: AdapterConfig) -> tuple[Pair | None, str]:
    if len(halves) < 2:
        return None, f"lacks lora_{'B' if 'A' in halves else 'A'}"
    a, b, rank = halves["A"], halves["B"], config.rank_of(module)
    if a.values.shape[0] != rank or b.values.shape[1] != rank:
        shapes = f"{list(a.values.shape)} and {list(b.values.shape)}"
        return None, f"has halves of {shapes}, its config says rank {rank}"
    return Pair(a, b, config.scale_of(module)), ""


def _half(stored: StoredTensor) -> Half:
    try:
        raw = np.fromfile(stored.path, np.uint8, stored.bytes, offset=stored.offset)
    except OSError as error:
        hint = "let the daemon's user read it"
        raise Fault(
            FaultKind.INVALID_MODEL, f"{stored.path} cannot be read: {error.strerror}", hint
        ) from None
    half = Half(raw.view(_RAW[FORMAT_BYTES[stored.dtype]]).reshape(stored.shape), stored.dtype)
    if not np.isfinite(_widened(half).values.view(np.float32)).all():
        message = f"{stored.path} holds infinite or NaN values"
        raise Fault(FaultKind.INVALID_MODEL, message, "its training diverged, or the file is damaged")
    return half


def _one_dtype(pairs: dict[str, Pair]) -> dict[str, Pair]:
    """All halves in one format, as PEFT writes them; a mixture becomes float32."""
    if len({half.dtype for pair in pairs.values() for half in (pair.a, pair.b)}) == 1:
        return pairs
    return {module: Pair(_widened(p.a), _widened(p.b), p.scale) for module, p in pairs.items()}


def _widened(half: Half) -> Half:
    if half.dtype == "float32":
        return half
    if half.dtype == "float16":
        return Half(half.values.view(np.float16).astype(np.float32).view(np.uint32), "float32")
    return Half(np.left_shift(half.values.astype(np.uint32), np.uint32(16)), "float32")
