"""LLaMA's and Qwen2's forward pass in plain NumPy float64: the oracle the network is compared with.

Written from the architecture's description only; it shares no code with the engine. It takes the published
weight names and the fields of a HuggingFace ``config.json``; a bias is added wherever the weights have one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def forward(stored: Mapping[str, NDArray[np.float32]], config: Mapping[str, Any], ids: list[int]) -> Array:
    """Return the logits [len(ids), vocab] of a whole sequence."""
    weights = {name: values.astype(np.float64) for name, values in stored.items()}
    epsilon = config["rms_norm_eps"]
    hidden = weights["model.embed_tokens.weight"][np.asarray(ids)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
        hidden = hidden + _attention(own, config, _norm(hidden, own["input_layernorm.weight"], epsilon))
        normed = _norm(hidden, own["post_attention_layernorm.weight"], epsilon)
        gate = _linear(own, "mlp.gate_proj", normed)
        hidden = hidden + _linear(
            own, "mlp.down_proj", gate / (1 + np.exp(-gate)) * _linear(own, "mlp.up_proj", normed)
        )
    tied = config.get("tie_word_embeddings", False)
    table = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    logits: Array = _norm(hidden, weights["model.norm.weight"], epsilon) @ table.T
    return logits


def _linear(layer: Mapping[str, Array], name: str, states: Array) -> Array:
    result: Array = states @ layer[f"{name}.weight"].T
    return result + layer[f"{name}.bias"] if f"{name}.bias" in layer else result


def _attention(layer: Mapping[str, Array], config: Mapping[str, Any], states: Array) -> Array:
    length, heads = len(states), config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or config["hidden_size"] // heads
    query = _linear(layer, "self_attn.q_proj", states).reshape(length, heads, width)
    key = _linear(layer, "self_attn.k_proj", states).reshape(length, kv_heads, width)
    value = _linear(layer, "self_attn.v_proj", states).reshape(length, kv_heads, width)
    query, key = _rotate(query, config), _rotate(key, config)
    mixed = np.empty_like(query)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        scores = query[:, head] @ key[:, shared].T / np.sqrt(width)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed[:, head] = (shares / shares.sum(axis=-1, keepdims=True)) @ value[:, shared]
    return _linear(layer, "self_attn.o_proj", mixed.reshape(length, -1))


def _rotate(states: Array, config: Mapping[str, Any]) -> Array:
    """Turn each pair (j, j + width / 2) of a head by position * theta^(-2 j / width)."""
    length, _, width = states.shape
    half = width // 2
    speed = float(config.get("rope_theta", 10000.0)) ** (-np.arange(half) * 2.0 / width)
    angle = np.outer(np.arange(length), speed)[:, None, :]
    first, second = states[..., :half], states[..., half:]
    turned = (
        first * np.cos(angle) - second * np.sin(angle),
        second * np.cos(angle) + first * np.sin(angle),
    )
    return np.concatenate(turned, axis=-1)


def _norm(states: Array, weight: Array, epsilon: float) -> Array:
    normed: Array = weight * states / np.sqrt(np.mean(np.square(states), axis=-1, keepdims=True) + epsilon)
    return normed
