"""Quantized weights and their published layout in plain NumPy, for the tests of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.daemon.backends.ms.tiny_telechat2 import CONFIG, Weights, write_model

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


def quantize(weights: FloatArray, bits: int, group: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Whole numbers and float16-exact scales [rows, groups], rounded to nearest, symmetric."""
    rows, cols = weights.shape
    padded = np.zeros((rows, -(-cols // group) * group), np.float32)
    padded[:, :cols] = weights
    split = padded.reshape(rows, -1, group)
    half = 1 << (bits - 1)
    scales = np.maximum(np.abs(split).max(2) / (half - 0.5), 1e-4).astype(np.float16).astype(np.float32)
    whole = np.clip(np.rint(split / scales[:, :, None]), -half, half - 1)
    return whole.reshape(rows, -1)[:, :cols].astype(np.int64), scales


def dequantize(whole: npt.NDArray[np.int64], scales: FloatArray, group: int) -> FloatArray:
    """The matrix that the whole numbers stand for."""
    spread = np.repeat(scales, group, axis=1)[:, : whole.shape[1]]
    return (whole * spread).astype(np.float32)


def pack(whole: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int32]:
    """32-bit words: half the range added, lowest bits first along a row."""
    rows, cols = whole.shape
    per_word = 32 // bits
    padded = np.zeros((rows, -(-cols // per_word) * per_word), np.uint64)
    padded[:, :cols] = whole + (1 << (bits - 1))
    words = np.zeros((rows, padded.shape[1] // per_word), np.uint64)
    for place in range(per_word):
        words |= padded[:, place::per_word] << np.uint64(bits * place)
    return words.astype(np.uint32).view(np.int32)


def config_of(bits: int, group: int, **weights: object) -> dict[str, Any]:
    """``quantization_config``; ``weights`` replaces fields of the scheme."""
    scheme = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**scheme, **weights}}},
        "ignore": [],
    }


def is_linear(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name and "embed" not in name and "ln_f" not in name


def quantized_tensors(weights: Weights, bits: int, group: int) -> tuple[dict[str, Array], Weights]:
    """The tensors of a checkpoint, and the float weights they stand for."""
    tensors: dict[str, Array] = {}
    exact: Weights = {}
    for name, values in weights.items():
        if not is_linear(name):
            tensors[name] = exact[name] = values
            continue
        whole, scales = quantize(values, bits, group)
        tensors[f"{name}_packed"] = pack(whole, bits)
        tensors[f"{name}_scale"] = scales.astype(np.float16)
        tensors[f"{name}_shape"] = np.array(values.shape, np.int64)
        exact[name] = dequantize(whole, scales, group)
    return tensors, exact


_CODES: Mapping[str, str] = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64"}


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """A safetensors file of any dtypes."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        dtype = _CODES[values.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_quantized(folder: Path, weights: Weights, bits: int, group: int) -> Weights:
    """A whole model directory; returns the float weights it stands for."""
    tensors, exact = quantized_tensors(weights, bits, group)
    write_model(folder, quantization_config=config_of(bits, group))
    write_tensors(folder / "model.safetensors", tensors)
    return exact


def change_config(folder: Path, **fields: object) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
