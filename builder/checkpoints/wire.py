"""The protobuf wire format, read from a file without trusting any number in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_WINDOW_BYTES = 64 * 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedError(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


CUT_SHORT = "is cut short"


class FileBytes:
    """Small reads at any place of a file, through one window."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self._start, self._window = 0, b""

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def at(self, offset: int, count: int) -> bytes:
        """Exactly so many bytes. Raises ``MalformedError`` where the file ends before."""
        if count < 0 or offset < 0 or offset + count > self.size:
            raise MalformedError(CUT_SHORT)
        inside = offset - self._start
        if inside < 0 or inside + count > len(self._window):
            wanted = max(count, _WINDOW_BYTES)
            self._window = os.pread(self._file.fileno(), wanted, offset)
            self._start, inside = offset, 0
        found = self._window[inside : inside + count]
        if len(found) < count:
            raise MalformedError(CUT_SHORT)
        return found


@dataclass(frozen=True)
class Field:
    number: int
    value: int
    """Of a number."""
    start: int
    end: int
    """Where a string, bytes or a message lies; equal for a number."""


def fields(data: FileBytes, start: int, end: int) -> Iterator[Field]:
    """The fields of a message. Raises ``MalformedError``."""
    position = start
    while position < end:
        key, position = varint(data, position, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise MalformedError("is not a protobuf message")
        if wire == _VARINT:
            value, position = varint(data, position, end)
            yield Field(number, value, position, position)
        elif wire == _BYTES:
            length, position = varint(data, position, end)
            if length > end - position:
                raise MalformedError(CUT_SHORT)
            yield Field(number, 0, position, position + length)
            position += length
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
            if position > end:
                raise MalformedError(CUT_SHORT)
        else:
            raise MalformedError("is not a protobuf message")


def varint(data: FileBytes, position: int, end: int) -> tuple[int, int]:
    """A number and where it ends. Raises ``MalformedError``."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise MalformedError(CUT_SHORT)
        byte = data.at(position, 1)[0]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
    raise MalformedError("has a number of more than 64 bits")


def numbers(data: FileBytes, field: Field) -> Iterator[int]:
    """The values of a repeated number field, packed or not."""
    if field.start == field.end:
        yield field.value
        return
    position = field.start
    while position < field.end:
        value, position = varint(data, position, field.end)
        yield value


def signed(value: int) -> int:
    """A 64-bit number as int32 and int64 fields mean it."""
    return value - 2**64 if value >= 2**63 else value


def text(data: FileBytes, field: Field, limit: int) -> str:
    """A string of at most so many bytes. Raises ``MalformedError``."""
    if field.end - field.start > limit:
        raise MalformedError(f"has a name of {field.end - field.start} bytes")
    try:
        return data.at(field.start, field.end - field.start).decode()
    except UnicodeDecodeError:
        raise MalformedError("has a name that is not text") from None


def encode_varint(value: int) -> bytes:
    """A number as the wire format has it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_bytes(number: int, content: bytes) -> bytes:
    """A field that is a string, bytes or a message."""
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(content)) + content


def encode_number(number: int, value: int) -> bytes:
    """A field that is a number; negative ones as int32 and int64 have them."""
    return encode_varint(number << 3 | _VARINT) + encode_varint(value & (2**64 - 1))
