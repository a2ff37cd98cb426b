"""Writes safetensors: a header with every place, then the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from builder.checkpoints.safetensors_header import DTYPE_BYTES, Header, TensorEntry, write_header
from builder.checkpoints.writers.streams import NamedView, Stream


def file_order(tensors: Sequence[NamedView]) -> list[NamedView]:
    """Widest elements first, then by name, as the format's own writer does it: every tensor is aligned."""
    return sorted(tensors, key=lambda tensor: (-DTYPE_BYTES[tensor.view.dtype], tensor.name))


def header_of(tensors: Sequence[NamedView], metadata: dict[str, str]) -> Header:
    """The header of a file with these tensors in this order."""
    entries, position = [], 0
    for tensor in tensors:
        end = position + tensor.view.bytes
        entries.append(TensorEntry(tensor.name, tensor.view.dtype, tensor.view.shape, position, end))
        position = end
    start = len(write_header(entries, metadata))
    return Header(tuple(entries), metadata, start, start + position, "")


def safetensors_bytes(
    tensors: Sequence[NamedView], stream: Stream, metadata: dict[str, str]
) -> Iterator[bytes | memoryview]:
    """The file from front to back."""
    ordered = file_order(tensors)
    yield write_header(list(header_of(ordered, metadata).tensors), metadata)
    for tensor in ordered:
        yield from stream.chunks(tensor)
