"""Rounds rows of a matrix to groups of small integers with one scale each, and packs them into 32-bit words.

The form is compressed-tensors' ``pack-quantized``: signed integers stored unsigned by adding half their
range, the first of a word in its lowest bits. Every group tries a few scales, or many when clipping is
searched for, and keeps the one with the least squared error, measured with the scale as it is stored. A
group's result depends on nothing but its values, so that neither the buffer nor the number of threads shows
in the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from builder.checkpoints.dtypes import narrowed, widened

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUANTIZER_VERSION = 1
"""Part of a model's fingerprint: raise it when the same weights would give other bytes."""

_STEPS: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        4: (7.5, 7.0, 8.0, 8.5, 9.0, 9.6, 10.4),
        8: (127.5, 127.0, 128.0, 131.0),
    }
)
"""Scales to try, as the number of steps to the largest value of a group; the published choice first."""


def _steps(first: int, end: int, parts: int) -> tuple[float, ...]:
    return tuple(step / parts for step in range(first, end))


_SEARCHED: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        4: tuple(dict.fromkeys((*_STEPS[4], *_steps(52, 97, 8), *_steps(25, 33, 2)))),
        8: tuple(dict.fromkeys((*_STEPS[8], *_steps(126, 181, 1)))),
    }
)
"""The same when clipping is searched for: a group's largest value may be cut to 0.44 of itself, or 0.7."""

_SMALLEST: Mapping[str, float] = MappingProxyType({"F32": 2.0**-126, "F16": 2.0**-24, "BF16": 2.0**-126})
"""The least scale that each dtype can store."""


@dataclass(frozen=True)
class QuantizedRows:
    """Some rows of a matrix, rounded."""

    values: NDArray[np.int8]
    """[rows, columns]"""
    scales: bytes
    """[rows, groups] in the dtype of the scales."""
    squared_error: float
    squared_weight: float


def quantize_rows(
    rows: NDArray[np.float32], bits: int, group: int, scale_dtype: str, *, search_clip: bool = False
) -> QuantizedRows:
    """Round finite float32 rows [n, k], ``k`` a multiple of ``group``."""
    import numpy as np

    # A group is a column: every operation then runs along whole lines of memory.
    groups = np.ascontiguousarray(rows.reshape(-1, group).T)
    largest = np.maximum.reduce(np.abs(groups), axis=0)
    rounded, difference = np.empty_like(groups), np.empty_like(groups)
    chosen = np.zeros_like(largest)
    least = np.full_like(largest, np.inf)
    for index, steps in enumerate((_SEARCHED if search_clip else _STEPS)[bits]):
        scales = _stored_scales(largest, steps, scale_dtype)
        _round(groups, scales, bits, rounded)
        np.multiply(rounded, scales, out=difference)
        np.subtract(groups, difference, out=difference)
        with np.errstate(over="ignore"):
            error = np.add.reduce(np.square(difference, out=difference), axis=0)
        better = error < least if index else np.ones_like(error, bool)
        chosen, least = np.where(better, scales, chosen), np.where(better, error, least)
    _round(groups, chosen, bits, rounded)
    with np.errstate(over="ignore"):
        weight = float(np.square(groups, dtype=np.float64).sum())
    values = np.ascontiguousarray(rounded.astype(np.int8).T).reshape(rows.shape)
    stored = narrowed(chosen, scale_dtype)
    return QuantizedRows(values, stored, float(least.sum(dtype=np.float64)), weight)


def _stored_scales(largest: NDArray[np.float32], steps: float, scale_dtype: str) -> NDArray[np.float32]:
    """The scale of every group for one candidate, as it reads when it has been stored."""
    import numpy as np

    wanted = np.maximum(largest / np.float32(steps), np.float32(_SMALLEST[scale_dtype]))
    wanted[largest == 0] = 1.0
    return widened(narrowed(wanted, scale_dtype), scale_dtype)


def _round(
    groups: NDArray[np.float32], scales: NDArray[np.float32], bits: int, out: NDArray[np.float32]
) -> None:
    """Whole numbers of every group's scale, within the range of ``bits``."""
    import numpy as np

    half = np.float32(1 << (bits - 1))
    np.divide(groups, scales, out=out)
    np.rint(out, out=out)
    np.maximum(out, -half, out=out)
    np.minimum(out, half - np.float32(1), out=out)


def pack(values: NDArray[np.int8], bits: int) -> bytes:
    """Little-endian 32-bit words of a matrix whose rows fill whole words."""
    import numpy as np

    unsigned = (values.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    if bits == 4:
        unsigned = unsigned[:, 0::2] + unsigned[:, 1::2] * np.uint8(16)
    return np.ascontiguousarray(unsigned).tobytes()
