"""Reads what ``torch.save`` wrote before torch 1.6: five pickles, then the storages one after another."""

from __future__ import annotations

import struct

from builder.checkpoints.readers.pickles import read_pickle
from builder.checkpoints.readers.torch_tensors import tensors_of
from builder.checkpoints.views import SourceFile, Span, View
from builder.checkpoints.wire import CUT_SHORT, FileBytes, MalformedError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_legacy(file: SourceFile) -> dict[str, View]:
    """The tensors of a file. Raises ``MalformedError`` or ``OSError``."""
    with FileBytes(file.path) as data:
        magic, position = read_pickle(data, 0, data.size)
        if magic != _MAGIC:
            raise MalformedError("is a pickle that torch.save did not write")
        protocol, position = read_pickle(data, position, data.size)
        system, position = read_pickle(data, position, data.size)
        if protocol != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise MalformedError("was saved by another torch or on a machine of the other byte order")
        content, position = read_pickle(data, position, data.size)
        keys, position = read_pickle(data, position, data.size)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise MalformedError("has no list of storages")
        asked: dict[str, int] = {}

        def note(key: str, length: int) -> Span:
            if asked.setdefault(key, length) != length:
                raise MalformedError(f"says two sizes of the storage {key}")
            return Span(0, length)

        tensors_of(file, content, note)  # the storages lie in another order than the tensors that use them
        places = _places(data, keys, position, asked)
        return tensors_of(file, content, lambda key, length: places[key])


def _places(data: FileBytes, keys: list[str], position: int, asked: dict[str, int]) -> dict[str, Span]:
    places = {}
    for key in keys:
        (elements,) = struct.unpack("<q", data.at(position, 8))
        position += 8
        if key not in asked:
            raise MalformedError(f"has the storage {key}, which no tensor uses")
        length = asked[key]
        if elements < 0 or length % max(elements, 1):
            raise MalformedError(f"says two sizes of the storage {key}")
        if position + length > data.size:
            raise MalformedError(CUT_SHORT)
        places[key] = Span(position, length)
        position += length
    missing = [key for key in asked if key not in places]
    if missing:
        raise MalformedError(f"lacks the storage {missing[0]}")
    return places
