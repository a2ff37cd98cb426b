"""A small random TeleChat2 model directory, for the tests of the engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.networks import networks_folder

Weights = dict[str, npt.NDArray[np.float32]]

CONFIG: Mapping[str, Any] = {
    "architectures": ["TelechatForCausalLM"],
    "model_type": "telechat",
    "hidden_size": 48,
    "n_layer": 3,
    "n_head": 6,
    "num_key_value_heads": 2,
    "ffn_hidden_size": 72,
    "vocab_size": 211,
    "layer_norm_epsilon": 1e-5,
    "training_seqlen": 32,
    "base_seqlen": 32,
    "seq_length": 256,
    "serving": {
        "format_version": 1,
        "backend": "ms",
        "network": "telechat2.py",
        "limits": {"max_seq_len": 256, "max_input_tokens": 255},
    },
}


def random_weights(seed: int = 0) -> Weights:
    """Of the configuration above, large enough that attention matters."""
    rng = np.random.default_rng(seed)
    hidden, kv, inner, vocab = 48, 16, 72, 211

    def random(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.15)

    weights = {
        "transformer.word_embeddings.weight": random(vocab, hidden) * 8,
        "transformer.ln_f.weight": 1 + random(hidden),
        "lm_head.weight": random(vocab, hidden),
    }
    for layer in range(CONFIG["n_layer"]):
        prefix = f"transformer.h.{layer}."
        weights |= {
            f"{prefix}input_layernorm.weight": 1 + random(hidden),
            f"{prefix}self_attention.query.weight": random(hidden, hidden),
            f"{prefix}self_attention.key_value.weight": random(2 * kv, hidden),
            f"{prefix}self_attention.dense.weight": random(hidden, hidden),
            f"{prefix}self_attention.dense.bias": random(hidden),
            f"{prefix}post_attention_layernorm.weight": 1 + random(hidden),
            f"{prefix}mlp.gate_proj.weight": random(inner, hidden),
            f"{prefix}mlp.up_proj.weight": random(inner, hidden),
            f"{prefix}mlp.down_proj.weight": random(hidden, inner),
            f"{prefix}mlp.down_proj.bias": random(hidden),
        }
    return weights


def encode(values: npt.NDArray[np.float32], dtype: str) -> tuple[str, bytes]:
    """A tensor's safetensors dtype and bytes; bfloat16 by cutting, so use values that survive it."""
    if dtype == "bfloat16":
        return "BF16", (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if dtype == "float16":
        return "F16", values.astype(np.float16).tobytes()
    return "F32", values.tobytes()


def write_safetensors(path: Path, weights: Weights, dtype: str = "float32") -> None:
    """The format by hand: the reader under test shares nothing with it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in weights.items():
        code, raw = encode(np.ascontiguousarray(values), dtype)
        header[name] = {
            "dtype": code,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_shards(folder: Path, weights: Weights, count: int = 3) -> None:
    """The weights spread over several files with an index."""
    names = list(weights)
    index: dict[str, str] = {}
    for shard in range(count):
        file = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        write_safetensors(folder / file, {name: weights[name] for name in names[shard::count]})
        index |= dict.fromkeys(names[shard::count], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_model(folder: Path, weights: Weights | None = None, dtype: str = "float32", **config: Any) -> Path:
    """A whole model directory; ``config`` replaces fields of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", random_weights() if weights is None else weights, dtype)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    shutil.copyfile(networks_folder() / "telechat2.py", folder / "telechat2.py")
    return folder
