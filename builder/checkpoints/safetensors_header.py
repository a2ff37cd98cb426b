"""Reads the header of a safetensors file, and nothing else of it, trusting no number in it."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.faults import Problem

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_NAME_LENGTH = 4096
MAX_AXES = 32

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}

_FETCH_AGAIN = "fetch the file again"


@dataclass(frozen=True)
class TensorEntry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: tuple[TensorEntry, ...]
    """In the order of their bytes."""
    metadata: dict[str, str]
    data_start: int
    """Where the tensors begin in the file."""
    size: int
    """Of the whole file."""
    sha256: str
    """Of the header's bytes."""


class HeaderError(Exception):
    """The file is not a sound safetensors file; carries every problem found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def read_header(path: Path) -> Header:
    """Read and check the header. Raises ``HeaderError``."""
    name = path.name
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _error(name, f"has only {size} bytes: it is cut short", _FETCH_AGAIN)
            length = struct.unpack("<Q", prefix)[0]
            if length > MAX_HEADER_BYTES:
                raise _error(name, f"is not safetensors: its header would have {length} bytes", _FETCH_AGAIN)
            if 8 + length > size:
                raise _error(
                    name,
                    f"has {size} bytes, its header alone needs {8 + length}: it is cut short",
                    _FETCH_AGAIN,
                )
            raw = file.read(length)
    except OSError as error:
        remedy = "check its permissions" if isinstance(error, PermissionError) else _FETCH_AGAIN
        raise _error(name, f"cannot be read: {error.strerror}", remedy) from None
    tensors, metadata = _parse(name, raw)
    _check_layout(name, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length, size, hashlib.sha256(raw).hexdigest())


def write_header(tensors: list[TensorEntry], metadata: dict[str, str]) -> bytes:
    """The bytes in front of these tensors' data."""
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for tensor in tensors:
        offsets = [tensor.start, tensor.end]
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _error(name: str, message: str, remedy: str = "") -> HeaderError:
    return HeaderError([Problem(name, message, remedy)])


def _parse(name: str, raw: bytes) -> tuple[tuple[TensorEntry, ...], dict[str, str]]:
    try:
        table = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _error(name, f"has a header that is not JSON: {error}", _FETCH_AGAIN) from None
    if not isinstance(table, dict):
        raise _error(name, "has a header that is not a JSON object", _FETCH_AGAIN)
    metadata = table.pop("__metadata__", {})
    tensors, problems = [], []
    for tensor, entry in table.items():
        if not tensor.isprintable() or not 0 < len(tensor) <= MAX_NAME_LENGTH:
            problems.append(Problem(name, f"holds the name {tensor[:64]!r}", _FETCH_AGAIN))
            continue
        found = _entry(tensor, entry)
        if isinstance(found, TensorEntry):
            tensors.append(found)
        else:
            problems.append(Problem(f"{name}  {tensor}", found, _FETCH_AGAIN))
    if problems:
        raise HeaderError(problems)
    kept = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    return tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))), kept


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def _entry(name: str, entry: Any) -> TensorEntry | str:
    """The checked entry, or what is wrong with it."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "lacks dtype, shape or data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"has the unknown dtype {_shown(dtype)}"
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(_is_count(size) for size in shape):
        return f"has the impossible shape {_shown(shape)}"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        return f"has the impossible data_offsets {_shown(offsets)}"
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        return f"takes {offsets[1] - offsets[0]} bytes, its shape needs {expected}"
    return TensorEntry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _shown(value: Any) -> str:
    return (
        repr(value)[:64] if isinstance(value, str | int | list) and len(str(value)) < 1000 else "(too long)"
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_layout(name: str, tensors: tuple[TensorEntry, ...], data_bytes: int) -> None:
    """The tensors must fill the file exactly: no hole, no overlap, nothing behind."""
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            word = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise _error(f"{name}  {tensor.name}", word, _FETCH_AGAIN)
        position = tensor.end
    if position > data_bytes:
        missing = f"{position - data_bytes} of {position} bytes of tensors are missing: it is cut short"
        raise _error(name, missing, _FETCH_AGAIN)
    if position < data_bytes:
        raise _error(name, f"has {data_bytes - position} bytes behind its last tensor", _FETCH_AGAIN)
