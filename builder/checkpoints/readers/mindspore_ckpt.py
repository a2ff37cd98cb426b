"""Reads MindSpore's ``.ckpt``: a protobuf message of named tensors, large ones in several pieces.

Layout: ``Checkpoint { repeated Value value = 1 }``, ``Value { tag = 1; tensor = 2 | maptensor = 3 }``,
``TensorProto { repeated dims = 1; tensor_type = 2; tensor_content = 3 }``. Pieces of one tensor follow one
another and all say the whole shape. A checksum may stand behind the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from builder.checkpoints.readers.limits import MAX_NAME_BYTES, checked_name, checked_shape, tensor_bytes
from builder.checkpoints.safetensors_header import DTYPE_BYTES, MAX_AXES
from builder.checkpoints.views import SourceFile, Span, Stored, View
from builder.checkpoints.wire import Field, FileBytes, MalformedError, fields, numbers, signed, text

CKPT_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "Bool": "BOOL",
        "Int8": "I8",
        "UInt8": "U8",
        "Int16": "I16",
        "UInt16": "U16",
        "Int32": "I32",
        "UInt32": "U32",
        "Int64": "I64",
        "UInt64": "U64",
        "Float16": "F16",
        "BFloat16": "BF16",
        "Float32": "F32",
        "Float64": "F64",
    }
)
"""MindSpore's names of dtypes -> safetensors'."""

_CHECKSUM = b"crc_num"
_CHECKSUM_BYTES = len(_CHECKSUM) + 10
_TEXT = "str"
"""A parameter that is a string: no weight."""


@dataclass
class _Piece:
    name: str
    dtype: str
    shape: tuple[int, ...]
    span: Span


def read_ckpt(file: SourceFile) -> dict[str, View]:
    """The tensors of a file. Raises ``MalformedError`` or ``OSError``."""
    pieces: dict[str, list[_Piece]] = {}
    last = None
    with FileBytes(file.path) as data:
        for field in fields(data, 0, _end(data)):
            if field.number != 1 or field.start == field.end:
                raise MalformedError("is not a MindSpore checkpoint")
            piece = _piece(data, field)
            if piece is None:
                continue
            if piece.name in pieces and piece.name != last:
                raise MalformedError(f"holds {piece.name} twice")
            pieces.setdefault(piece.name, []).append(piece)
            last = piece.name
    return {name: _joined(file, found) for name, found in pieces.items()}


def _end(data: FileBytes) -> int:
    if data.size > _CHECKSUM_BYTES:
        tail = data.at(data.size - _CHECKSUM_BYTES, len(_CHECKSUM))
        if tail == _CHECKSUM:
            return data.size - _CHECKSUM_BYTES
    return data.size


def _piece(data: FileBytes, value: Field) -> _Piece | None:
    """One Value; ``None`` when it holds text."""
    name, tensor = "", None
    for field in fields(data, value.start, value.end):
        if field.number == 1:
            name = checked_name(text(data, field, MAX_NAME_BYTES))
        elif field.number == 2:
            tensor = field
        elif field.number == 3:
            raise MalformedError(
                f"holds the map parameter {name or '(unnamed)'}, which is no weight of a model"
            )
    if not name or tensor is None:
        raise MalformedError("holds a tensor without name or content")
    dtype, dims, span = _tensor(data, tensor, name)
    if dtype == _TEXT:
        return None
    if dtype not in CKPT_DTYPES:
        raise MalformedError(f"holds {name} of the unknown type {dtype!r}")
    code = CKPT_DTYPES[dtype]
    shape = checked_shape(name, dims)
    if shape == (0,) and span.length == DTYPE_BYTES[code]:
        shape = ()  # an older MindSpore's way to write a scalar
    return _Piece(name, code, shape, span)


def _tensor(data: FileBytes, message: Field, name: str) -> tuple[str, list[int], Span]:
    dtype, span, dims = "", None, list[int]()
    for field in fields(data, message.start, message.end):
        if field.number == 1:
            for number in numbers(data, field):
                dims.append(signed(number))
                if len(dims) > MAX_AXES:
                    raise MalformedError(f"holds {name} with more than {MAX_AXES} axes")
        elif field.number == 2:
            dtype = text(data, field, 64)
        elif field.number == 3:
            span = Span(field.start, field.end - field.start)
    if span is None:
        raise MalformedError(f"holds {name} without content")
    return dtype, dims, span


def _joined(file: SourceFile, pieces: list[_Piece]) -> Stored:
    first = pieces[0]
    if any((piece.dtype, piece.shape) != (first.dtype, first.shape) for piece in pieces):
        raise MalformedError(f"holds {first.name} twice, in different shapes")
    held, needed = sum(piece.span.length for piece in pieces), tensor_bytes(first.dtype, first.shape)
    if held != needed:
        raise MalformedError(
            f"holds {held} bytes of {first.name}, its shape {list(first.shape)} needs {needed}"
        )
    return Stored(file, first.dtype, first.shape, tuple(piece.span for piece in pieces))
