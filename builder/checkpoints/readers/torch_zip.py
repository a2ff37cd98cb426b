"""Reads the zip form of ``torch.save``: ``data.pkl`` and one uncompressed entry a storage."""

from __future__ import annotations

import struct
import zipfile

from builder.checkpoints.readers.pickles import read_pickle
from builder.checkpoints.readers.torch_tensors import tensors_of
from builder.checkpoints.views import SourceFile, Span, View
from builder.checkpoints.wire import CUT_SHORT, FileBytes, MalformedError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_PICKLE = "data.pkl"


def read_zip(file: SourceFile) -> dict[str, View]:
    """The tensors of a file. Raises ``MalformedError`` or ``OSError``."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            count = len(archive.infolist())
    except OSError:
        raise
    except Exception as error:  # the library raises whatever its parts raise
        raise MalformedError(f"is not a whole zip file: {error}") from None
    if len(entries) != count:
        raise MalformedError("holds two entries of one name")
    pickles = [name for name in entries if name.split("/")[-1] == _PICKLE and name.count("/") <= 1]
    if len(pickles) != 1:
        raise MalformedError(f"is a zip file without {_PICKLE}, not one of torch.save")
    root = pickles[0].removesuffix(_PICKLE)
    with FileBytes(file.path) as data:
        order = entries.get(f"{root}byteorder")
        if order is not None:
            span = _place(data, order)
            if data.at(span.offset, min(span.length, 16)) != b"little":
                raise MalformedError("was saved on a machine of the other byte order")

        def locate(key: str, length: int) -> Span:
            entry = entries.get(f"{root}data/{key}")
            if entry is None:
                raise MalformedError(f"lacks its entry data/{key}")
            span = _place(data, entry)
            if span.length < length:
                raise MalformedError(f"has {span.length} bytes in its entry data/{key}, {length} are needed")
            return span

        span = _place(data, entries[pickles[0]])
        content, _ = read_pickle(data, span.offset, span.offset + span.length)
        return tensors_of(file, content, locate)


def _place(data: FileBytes, entry: zipfile.ZipInfo) -> Span:
    """Where the bytes of an entry lie."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise MalformedError(f"holds {entry.filename} compressed, which torch.save never writes")
    header = _LOCAL_HEADER.unpack(data.at(entry.header_offset, _LOCAL_HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise MalformedError(f"does not hold {entry.filename} where its table says")
    start = entry.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
    if start + entry.file_size > data.size:
        raise MalformedError(CUT_SHORT)
    return Span(start, entry.file_size)
