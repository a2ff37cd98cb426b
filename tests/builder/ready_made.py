"""GPTQ's and AWQ's checkpoints, packed from known numbers as the formats' own writers do it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.builder.hf_models import LLAMA3, write_folder

WIDE: Mapping[str, Any] = {**LLAMA3, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Form:
    method: Literal["gptq", "awq"] = "gptq"
    bits: int = 4
    group: int = 32
    symmetric: bool = True
    layout: str = "gptq"
    scale_dtype: Any = np.float16

    def config(self) -> dict[str, Any]:
        """``quantization_config`` as AutoGPTQ and AutoAWQ write it."""
        if self.method == "awq":
            shared = {"quant_method": "awq", "bits": 4, "group_size": self.group}
            return {**shared, "version": "gemm", "zero_point": True, "modules_to_not_convert": None}
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.symmetric,
            "desc_act": False,
            "checkpoint_format": self.layout,
        }


def gptq_words(values: Any, bits: int) -> Any:
    """AutoGPTQ's loop: along the first axis, the first value in the lowest bits."""
    per_word = 32 // bits
    words = np.zeros((values.shape[0] // per_word, values.shape[1]), np.uint32)
    for row in range(len(words)):
        for place in range(per_word):
            words[row] |= values[row * per_word + place].astype(np.uint32) << np.uint32(bits * place)
    return words


def awq_words(values: Any) -> Any:
    """AutoAWQ's loop: along the second axis, in its order."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for place in range(8):
            words[:, column] |= values[:, column * 8 + _ORDER[place]].astype(np.uint32) << np.uint32(
                4 * place
            )
    return words


def quantized_layer(shape: tuple[int, int], form: Form, seed: int) -> tuple[dict[str, Any], Any]:
    """A layer's tensors, and the matrix [outputs, inputs] that they stand for, in float32."""
    rng, (outputs, inputs) = np.random.default_rng(seed), shape
    group = inputs if form.group == -1 else min(form.group, inputs)
    groups, half = -(-inputs // group), 1 << (form.bits - 1)
    integers = rng.integers(0, 2 * half, (inputs, outputs))
    zeros = np.full((groups, outputs), half)
    if not form.symmetric:
        zeros = rng.integers(0, 2 * half, (groups, outputs))
    scales = rng.uniform(0.01, 0.03, (groups, outputs)).astype(form.scale_dtype)
    owner = np.arange(inputs) // group
    matrix = scales[owner].astype(np.float32) * (integers - zeros[owner]).astype(np.float32)
    if form.method == "awq":
        tensors = {"qweight": awq_words(integers), "qzeros": awq_words(zeros)}
    else:
        stored = (zeros - 1) % (2 * half) if form.layout == "gptq" else zeros
        tensors = {
            "qweight": gptq_words(integers, form.bits),
            "qzeros": gptq_words(stored.T, form.bits).T.copy(),
            "g_idx": owner.astype(np.int32),
        }
    typed = {name: part.view(np.int32) for name, part in tensors.items()}
    return {**typed, "scales": scales}, matrix.T.copy()


def write_ready_made(
    folder: Path, form: Form, config: Mapping[str, Any] = WIDE, **files: Any
) -> dict[str, Any]:
    """A folder of random integers; the float tensors that it stands for."""
    write_folder(folder, {**config, "quantization_config": form.config()}, **files)
    path = folder / "model.safetensors"
    stored: dict[str, Any] = {}
    meant: dict[str, Any] = {}
    for seed, (name, values) in enumerate(load_file(path).items()):
        if not name.endswith("_proj.weight"):
            stored[name] = meant[name] = values
            continue
        parts, meant[name] = quantized_layer(values.shape, form, seed)
        stored |= {name.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
    save_file(stored, path, metadata={"format": "pt"})
    return meant


def write_meant(folder: Path, meant: dict[str, Any], config: Mapping[str, Any] = WIDE) -> Path:
    """The same model in floats."""
    write_folder(folder, config)
    save_file(meant, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change(folder: Path, name: str, tensor: Any) -> None:
    """Replace a tensor, or with ``None`` remove it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def configure(folder: Path, **fields: Any) -> None:
    """Replace fields of ``quantization_config``; with ``None`` remove them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    block = {**config["quantization_config"], **fields}
    config["quantization_config"] = {key: value for key, value in block.items() if value is not None}
    path.write_text(json.dumps(config))
