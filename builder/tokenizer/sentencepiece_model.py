"""Reads a SentencePiece ``tokenizer.model``: its pieces and the options that change how text is encoded.

The file is a protobuf. sentencepiece's own message classes ask for a newer protobuf than tritonclient
allows, so the few fields needed are read here, by their published numbers.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.faults import Fault, FaultKind


class PieceType(enum.IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(enum.IntEnum):
    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: PieceType

    @property
    def is_special(self) -> bool:
        """Never comes out of plain text: stands for itself only where a server cuts it out first."""
        return self.type in (PieceType.CONTROL, PieceType.UNKNOWN)


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: tuple[Piece, ...]
    model_type: ModelType
    byte_fallback: bool
    whitespace_as_suffix: bool
    unk_surface: str
    charsmap: bytes
    """Compiled normalisation table; empty for identity."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    @property
    def unk_id(self) -> int:
        return next(index for index, piece in enumerate(self.pieces) if piece.type is PieceType.UNKNOWN)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Parse ``tokenizer.model``. Raises ``Fault``."""
    try:
        return parse_sentencepiece(path.read_bytes())
    except OSError as error:
        hint = "name the tokenizer or its folder with --tokenizer"
        raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error.strerror}", hint) from None
    except (ValueError, IndexError, struct.error, StopIteration) as error:
        hint = "fetch the file again from the model's publisher"
        raise Fault(FaultKind.INVALID_MODEL, f"{path} is not a SentencePiece model: {error}", hint) from None


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Parse the content of ``tokenizer.model``. Raises ``ValueError`` and its kin on anything else."""
    pieces: list[Piece] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            trainer = dict(_fields(_message(value)))
        elif number == 3:
            normalizer = dict(_fields(_message(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    if not any(piece.type is PieceType.UNKNOWN for piece in pieces):
        raise ValueError("it has no unknown piece")
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=ModelType(_number(trainer.get(3, 1))),
        byte_fallback=bool(trainer.get(35, 0)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        unk_surface=_message(trainer.get(44, " \u2047 ".encode())).decode(),
        charsmap=_message(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", _message(fields[2]))[0] if 2 in fields else 0.0
    return Piece(_message(fields.get(1, b"")).decode(), score, PieceType(_number(fields.get(3, 1))))


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field is a number, not bytes")
    return value


def _number(value: bytes | int) -> int:
    if isinstance(value, bytes):
        raise ValueError("a field is bytes, not a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and raw value of each protobuf field, in order."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"it ends within a field at byte {position}; the file is cut short")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"it ends within a number at byte {position}; the file is cut short")
        byte = data[position]
        result |= (byte & 0x7F) << shift
        position += 1
        if not byte & 0x80:
            return result, position
        shift += 7
