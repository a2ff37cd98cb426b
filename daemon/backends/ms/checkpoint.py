"""What lies where in a folder of safetensors files, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from contract.faults import Fault, FaultKind

_DTYPES: Mapping[str, str] = MappingProxyType(
    {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I32": "int32", "I64": "int64"}
)
_BYTES: Mapping[str, int] = MappingProxyType(
    {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8}
)
_MAX_HEADER = 100 << 20  # as safetensors itself
_LISTED = 5  # names of a long list that an error shows


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def is_float(self) -> bool:
        return not self.dtype.startswith("int")


class Checkpoint:
    """The safetensors files of a folder: one, or several with an index."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers. Raises ``Fault`` when a file is missing, cut short or not safetensors."""
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for path in _files(folder):
            self.tensors.update(read_header(path))

    @property
    def total_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def main_dtype(self) -> str:
        """The dtype most of the bytes have that are floats."""
        amount = {"float32": 0}
        for tensor in self.tensors.values():
            if tensor.is_float:
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
            raise Fault(FaultKind.INVALID_MODEL, f"{folder} lacks the weight file {some(missing)}")
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    message = f"{folder} has neither model.safetensors nor model.safetensors.index.json"
    raise Fault(FaultKind.INVALID_MODEL, message)


def read_header(path: Path) -> dict[str, StoredTensor]:
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
    expected = _BYTES[name]
    for dimension in shape:
        expected *= dimension
    if last - first != expected or first < 0 or begin + last > size:
        raise ValueError("it is cut short, or its header is damaged")
    return StoredTensor(path, name, tuple(shape), begin + first, expected)


def some(names: Sequence[str]) -> str:
    """The first few names of a list, for a message."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
