"""Small random LLaMA- and Qwen2-shaped model directories, for the tests of the engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contract.networks import networks_folder
from tests.daemon.backends.ms.tiny_telechat2 import Weights, write_safetensors

SIZES: Mapping[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 72,
    "vocab_size": 211,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
LLAMA: Mapping[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES}
QWEN2: Mapping[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SIZES}

_MATRICES = {
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key", "hidden"),
    "self_attn.v_proj": ("key", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}


def biased(config: Mapping[str, Any]) -> list[str]:
    """Projections with a bias, as transformers builds these models."""
    if config["model_type"] == "qwen2":
        return [f"self_attn.{name}_proj" for name in "qkv"]
    names = [f"self_attn.{name}_proj" for name in "qkvo"] if config.get("attention_bias") else []
    if config.get("mlp_bias"):
        names += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return names


def random_weights(config: Mapping[str, Any], seed: int = 0) -> Weights:
    """Weights of a configuration, large enough that attention matters."""
    rng = np.random.default_rng(seed)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = config.get("head_dim") or hidden // heads
    size = {
        "hidden": hidden,
        "query": heads * width,
        "key": config["num_key_value_heads"] * width,
        "inner": config["intermediate_size"],
    }

    def random(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.15)

    weights: Weights = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden) * 4,
        "model.norm.weight": 1 + random(hidden),
    }
    if not config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = random(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights[f"{prefix}input_layernorm.weight"] = 1 + random(hidden)
        weights[f"{prefix}post_attention_layernorm.weight"] = 1 + random(hidden)
        for name, (rows, columns) in _MATRICES.items():
            weights[f"{prefix}{name}.weight"] = random(size[rows], size[columns])
            if name in biased(config):
                weights[f"{prefix}{name}.bias"] = random(size[rows]) * 3
    return weights


def write_model(folder: Path, config: Mapping[str, Any], weights: Weights) -> Path:
    """A model directory for the runner alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", weights)
    limits = {"max_seq_len": 256, "max_input_tokens": 255}
    serving = {"format_version": 1, "backend": "ms", "network": "decoder.py", "limits": limits}
    (folder / "config.json").write_text(json.dumps({**config, "serving": serving}))
    shutil.copyfile(networks_folder() / "decoder.py", folder / "decoder.py")
    return folder
