"""Writes the zip form of ``torch.save``: a state dict of tensors that are stored one by one."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Sequence

from builder.checkpoints.readers.torch_tensors import STORAGE_DTYPES
from builder.checkpoints.writers.streams import NamedView, Stream

_STORAGES = {code: name for name, code in STORAGE_DTYPES.items()}
_ROOT = "archive"
_ALIGNMENT = 64
_PADDING_ID = 0x4246
_LOCAL_HEADER_BYTES = 30
_ZIP64_BYTES = 20
_LONGEST = 2**31 - 1


def torch_bytes(tensors: Sequence[NamedView], stream: Stream) -> Iterator[bytes | memoryview]:
    """The file from front to back."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        small = (("data.pkl", _pickle(tensors)), ("byteorder", b"little"))
        for name, content in small:
            with archive.open(_entry(name, sink.position), "w", force_zip64=True) as entry:
                entry.write(content)
            yield from sink.drain()
        for index, tensor in enumerate(tensors):
            with archive.open(_entry(f"data/{index}", sink.position), "w", force_zip64=True) as entry:
                for chunk in stream.chunks(tensor):
                    entry.write(chunk)
                    yield from sink.drain()
            yield from sink.drain()
        with archive.open(_entry("version", sink.position), "w", force_zip64=True) as entry:
            entry.write(b"3\n")
    yield from sink.drain()


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self.position = 0
        self._parts: list[bytes | memoryview] = []

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self._parts.append(data)
        self.position += len(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def drain(self) -> Iterator[bytes | memoryview]:
        parts, self._parts = self._parts, []
        yield from parts


def _entry(name: str, position: int) -> zipfile.ZipInfo:
    """An entry whose content begins where torch can map it."""
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    begin = position + _LOCAL_HEADER_BYTES + len(entry.filename) + _ZIP64_BYTES + 4
    padding = -begin % _ALIGNMENT
    entry.extra = struct.pack("<HH", _PADDING_ID, padding) + b"Z" * padding
    return entry


def _pickle(tensors: Sequence[NamedView]) -> bytes:
    """``OrderedDict`` of ``_rebuild_tensor_v2`` calls, in protocol 2."""
    parts = [b"\x80\x02", b"ccollections\nOrderedDict\n)R("]
    for index, tensor in enumerate(tensors):
        storage = _STORAGES[tensor.view.dtype].rpartition(".")[2].encode()
        elements = tensor.view.elements
        parts.extend(
            (
                _text(tensor.name),
                b"ctorch._utils\n_rebuild_tensor_v2\n((",
                _text("storage"),
                b"ctorch\n" + storage + b"\n",
                _text(str(index)) + _text("cpu") + _integer(elements),
                b"tQ",
                _integer(0) + _integers(tensor.view.shape) + _integers(_strides(tensor.view.shape)),
                b"\x89ccollections\nOrderedDict\n)RtR",
            )
        )
    return b"".join((*parts, b"u."))


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value <= _LONGEST:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + raw


def _integers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
