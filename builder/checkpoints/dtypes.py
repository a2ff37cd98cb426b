"""Converts weights between float32, float16 and bfloat16, a buffer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from builder.checkpoints.safetensors_header import DTYPE_BYTES, Header, TensorEntry, write_header
from builder.checkpoints.weight_files import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES: Mapping[str, str] = MappingProxyType({"float32": "F32", "float16": "F16", "bfloat16": "BF16"})
"""Names as config.json has them -> as safetensors has them."""

_NAMES = {code: name for name, code in DTYPES.items()}
FLOATS = frozenset(DTYPES.values())


def stored_dtype(weights: Weights, converted_to: str | None) -> str:
    """The float dtype most of the weights have in the model directory, by its config.json name."""
    if converted_to is not None:
        return converted_to
    code = next((code for code in weights.dtypes if code in FLOATS), next(iter(weights.dtypes)))
    return _NAMES.get(code, code.lower())


def converted_header(header: Header, dtype: str) -> Header:
    """The header after conversion of all float tensors; the same object when nothing changes."""
    target = DTYPES[dtype]
    position, tensors = 0, []
    for tensor in header.tensors:
        code = target if tensor.dtype in FLOATS else tensor.dtype
        end = position + tensor.elements * DTYPE_BYTES[code]
        tensors.append(replace(tensor, dtype=code, start=position, end=end))
        position = end
    if all(new.dtype == old.dtype for new, old in zip(tensors, header.tensors, strict=True)):
        return header
    start = len(write_header(tensors, header.metadata))
    return Header(tuple(tensors), header.metadata, start, start + position, "")


def convert_values(data: bytes | memoryview, source: TensorEntry, target: TensorEntry) -> bytes:
    """A run of whole elements in another dtype. Rounds to nearest, ties to even; NaN stays NaN."""
    if source.dtype == target.dtype:
        return bytes(data)
    return narrowed(widened(data, source.dtype), target.dtype)


def narrowed(wide: NDArray[np.float32], code: str) -> bytes:
    """Float32 values in the dtype of this safetensors code. Rounds to nearest, ties to even."""
    import numpy as np

    if code == "F32":
        return wide.tobytes()
    if code == "F16":
        with np.errstate(over="ignore"):
            return wide.astype("<f2").tobytes()
    return _to_bfloat16(wide)


def widened(data: bytes | memoryview, code: str) -> NDArray[np.float32]:
    """Stored values of the dtype of this safetensors code as float32, exactly."""
    import numpy as np

    if code == "F32":
        return np.frombuffer(data, "<f4")
    if code == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    bits = np.frombuffer(data, "<u2").astype(np.uint32)
    np.left_shift(bits, 16, out=bits)
    return bits.view(np.float32)


def _to_bfloat16(wide: NDArray[np.float32]) -> bytes:
    import numpy as np

    bits = wide.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    nan = np.isnan(wide)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16) | 0x40
    return rounded.astype("<u2").tobytes()
