"""What every reader asks of a tensor before it believes in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from builder.checkpoints.safetensors_header import DTYPE_BYTES, MAX_AXES, MAX_NAME_LENGTH
from builder.checkpoints.wire import MalformedError

MAX_NAME_BYTES = MAX_NAME_LENGTH


def checked_shape(name: str, shape: Sequence[object]) -> tuple[int, ...]:
    """The shape, if it can be one. Raises ``MalformedError``."""
    if len(shape) > MAX_AXES:
        raise MalformedError(f"holds {name} with {len(shape)} axes")
    sizes = [size for size in shape if isinstance(size, int) and not isinstance(size, bool)]
    if len(sizes) != len(shape) or any(size < 0 or size >= 2**63 for size in sizes):
        raise MalformedError(f"holds {name} with an impossible shape")
    return tuple(sizes)


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPE_BYTES[dtype]


def checked_name(name: object) -> str:
    """The name, if every format can write it. Raises ``MalformedError``."""
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_BYTES:
        raise MalformedError("holds a tensor without a usable name")
    if not name.isprintable():
        raise MalformedError(f"holds a tensor with the name {name!r}")
    return name
