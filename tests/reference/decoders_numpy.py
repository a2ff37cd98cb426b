"""ChatGLM2, Baichuan 2 and FM-9G in plain NumPy float64, for which ``transformers`` has no class of its own.

Written from the models' descriptions only; shares no code with the engine. Takes the published weight names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.float32]]


def chatglm2(stored: Weights, config: Mapping[str, Any], ids: Sequence[int]) -> Array:
    """Packed projections, two shared key heads, the first half of each head turned in adjacent pairs."""
    weights = _float64(stored)
    heads, kv, width = (
        config[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels")
    )
    epsilon, inner = config["layernorm_epsilon"], config["ffn_hidden_size"]
    x = weights["transformer.embedding.word_embeddings.weight"][np.asarray(ids)]
    for layer in range(config["num_layers"]):
        own = _below(weights, f"transformer.encoder.layers.{layer}.")
        packed = (
            _norm(x, own["input_layernorm.weight"], epsilon) @ own["self_attention.query_key_value.weight"].T
        )
        packed = packed + own["self_attention.query_key_value.bias"]
        q, k, v = np.split(packed, [heads * width, (heads + kv) * width], axis=1)
        q, k, v = (_heads(part, width) for part in (q, k, v))
        q, k = (_turn_adjacent(part, width // 2, 10000.0) for part in (q, k))
        x = x + _attend(q, k, v) @ own["self_attention.dense.weight"].T
        both = _norm(x, own["post_attention_layernorm.weight"], epsilon) @ own["mlp.dense_h_to_4h.weight"].T
        x = x + (_silu(both[:, :inner]) * both[:, inner:]) @ own["mlp.dense_4h_to_h.weight"].T
    normed = _norm(x, weights["transformer.encoder.final_layernorm.weight"], epsilon)
    return _linear(normed, weights["transformer.output_layer.weight"])


def baichuan2(stored: Weights, config: Mapping[str, Any], ids: Sequence[int]) -> Array:
    """Nothing turns: the score of a key falls with its distance. The head's rows have length one."""
    weights = _float64(stored)
    heads, epsilon = config["num_attention_heads"], config["rms_norm_eps"]
    width = config["hidden_size"] // heads
    x = weights["model.embed_tokens.weight"][np.asarray(ids)]
    for layer in range(config["num_hidden_layers"]):
        own = _below(weights, f"model.layers.{layer}.")
        packed = _norm(x, own["input_layernorm.weight"], epsilon) @ own["self_attn.W_pack.weight"].T
        q, k, v = (_heads(part, width) for part in np.split(packed, 3, axis=1))
        x = x + _attend(q, k, v, slopes(heads)) @ own["self_attn.o_proj.weight"].T
        x = x + _swiglu(own, _norm(x, own["post_attention_layernorm.weight"], epsilon))
    table = weights["lm_head.weight"]
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return _linear(_norm(x, weights["model.norm.weight"], epsilon), unit)


def fm9g(stored: Weights, config: Mapping[str, Any], ids: Sequence[int]) -> Array:
    """Embedding, branches and logits are scaled; the head is the embedding's table."""
    weights = _float64(stored)
    heads, epsilon = config["num_attention_heads"], config["rms_norm_eps"]
    width = config["hidden_size"] // heads
    branch = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    table = weights["model.embed_tokens.weight"]
    x = table[np.asarray(ids)] * config["scale_emb"]
    for layer in range(config["num_hidden_layers"]):
        own = _below(weights, f"model.layers.{layer}.")
        states = _norm(x, own["input_layernorm.weight"], epsilon)
        q, k, v = (_heads(states @ own[f"self_attn.{role}_proj.weight"].T, width) for role in "qkv")
        q, k = (_turn_halves(part, config["rope_theta"]) for part in (q, k))
        x = x + branch * (_attend(q, k, v) @ own["self_attn.o_proj.weight"].T)
        x = x + branch * _swiglu(own, _norm(x, own["post_attention_layernorm.weight"], epsilon))
    narrowed = config["hidden_size"] / config["dim_model_base"]
    return _linear(_norm(x, weights["model.norm.weight"], epsilon) / narrowed, table)


def slopes(heads: int) -> list[float]:
    """Of the ALiBi paper: powers of 2^(-8/n), the missing ones from between those of twice as many heads."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8.0 * (index + 1) / power) for index in range(power)]
    twice = [2.0 ** (-4.0 * (index + 1) / power) for index in range(2 * power)]
    return first + twice[0::2][: heads - power]


def _float64(stored: Weights) -> dict[str, Array]:
    return {name: values.astype(np.float64) for name, values in stored.items()}


def _below(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def _norm(x: Array, weight: Array, epsilon: float) -> Array:
    normed: Array = weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return normed


def _linear(x: Array, matrix: Array) -> Array:
    result: Array = x @ matrix.T
    return result


def _silu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-x))
    return result


def _swiglu(own: Mapping[str, Array], x: Array) -> Array:
    gate, up = x @ own["mlp.gate_proj.weight"].T, x @ own["mlp.up_proj.weight"].T
    return (_silu(gate) * up) @ own["mlp.down_proj.weight"].T


def _heads(x: Array, width: int) -> Array:
    """[positions, heads, width]."""
    return x.reshape(len(x), -1, width)


def _angles(length: int, width: int, base: float) -> Array:
    angles: Array = np.outer(np.arange(length), base ** (-2.0 * np.arange(width // 2) / width))[:, None, :]
    return angles


def _turn_halves(x: Array, base: float) -> Array:
    half = x.shape[-1] // 2
    angles = _angles(len(x), 2 * half, base)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1
    )


def _turn_adjacent(x: Array, turned: int, base: float) -> Array:
    angles = _angles(len(x), turned, base)
    result = x.copy()
    even, odd = x[..., 0:turned:2], x[..., 1:turned:2]
    result[..., 0:turned:2] = even * np.cos(angles) - odd * np.sin(angles)
    result[..., 1:turned:2] = odd * np.cos(angles) + even * np.sin(angles)
    return result


def _attend(q: Array, k: Array, v: Array, slope: Sequence[float] = ()) -> Array:
    """Causal; query heads share key heads; the result is joined [positions, heads * width]."""
    length, heads, width = q.shape
    shared = heads // k.shape[1]
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    mixed = np.empty_like(q)
    for head in range(heads):
        scores = q[:, head] @ k[:, head // shared].T / math.sqrt(width)
        if slope:
            scores = scores + slope[head] * distance
        scores = np.where(distance <= 0, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, head] = shares / shares.sum(axis=1, keepdims=True) @ v[:, head // shared]
    return mixed.reshape(length, heads * width)
