"""Writes MindSpore's ``.ckpt``, byte for byte as ``mindspore.save_checkpoint`` writes plain arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from builder.checkpoints.readers.mindspore_ckpt import CKPT_DTYPES
from builder.checkpoints.wire import encode_bytes, encode_number, encode_varint
from builder.checkpoints.writers.streams import NamedView, Stream

_PIECE_BYTES = 512 * 1024 * 1024
_NAMES = {code: name for name, code in CKPT_DTYPES.items()}
_CONTENT_KEY, _TENSOR_KEY, _VALUE_KEY = 0x1A, 0x12, 0x0A


def ckpt_bytes(tensors: Sequence[NamedView], stream: Stream) -> Iterator[bytes | memoryview]:
    """The file from front to back."""
    for tensor in tensors:
        chunks = stream.chunks(tensor)
        waiting: memoryview = memoryview(b"")
        for length in piece_lengths(tensor.view.shape, tensor.view.bytes):
            yield _head(tensor, length)
            missing = length
            while missing:
                if not waiting:
                    waiting = next(chunks)
                part = waiting[:missing]
                yield part
                missing, waiting = missing - len(part), waiting[len(part) :]


def piece_lengths(shape: tuple[int, ...], size: int) -> list[int]:
    """Bytes of each piece of a tensor: whole rows of the first axis, spread evenly."""
    count = -(-size // _PIECE_BYTES) if size > _PIECE_BYTES else 1
    if count == 1 or not shape:
        return [size]
    count = min(count, shape[0])
    rows, longer = divmod(shape[0], count)
    row_bytes = size // shape[0]
    return [(rows + 1 if index < longer else rows) * row_bytes for index in range(count)]


def _head(tensor: NamedView, length: int) -> bytes:
    """What stands before the content of one piece."""
    described = b"".join(encode_number(1, size) for size in tensor.view.shape)
    described += encode_bytes(2, _NAMES[tensor.view.dtype].encode())
    described += encode_varint(_CONTENT_KEY) + encode_varint(length)
    tag = encode_bytes(1, tensor.name.encode())
    inner = encode_varint(_TENSOR_KEY) + encode_varint(len(described) + length) + described
    return encode_varint(_VALUE_KEY) + encode_varint(len(tag) + len(inner) + length) + tag + inner
