"""TeleChat2's forward pass in plain NumPy float32: the oracle other implementations are compared with.

Written from the architecture's description only; it shares no code with the engine or the trainer. It takes
the published weight names and the fields of a HuggingFace-shaped ``config.json``.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def load_safetensors_float32(path: Path) -> dict[str, Array]:
    """Read a safetensors file of bfloat16, float16 or float32 tensors as float32."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = _as_float32(data[begin:end], entry["dtype"]).reshape(entry["shape"])
    return tensors


def _as_float32(raw: bytes, dtype: str) -> Array:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32)


def forward(weights: dict[str, Array], config: dict[str, Any], ids: list[int]) -> Array:
    """Return the logits [len(ids), vocab] of a whole sequence, rotated for its own length."""
    epsilon = config["layer_norm_epsilon"]
    cos, sin = rotary(config, len(ids))
    hidden = weights["transformer.word_embeddings.weight"][np.asarray(ids)]
    for layer in range(config["n_layer"]):
        prefix = f"transformer.h.{layer}."
        own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
        hidden = hidden + attention(
            own, config, _norm(hidden, own["input_layernorm.weight"], epsilon), cos, sin
        )
        normed = _norm(hidden, own["post_attention_layernorm.weight"], epsilon)
        hidden = hidden + (_mixture(own, config, normed) if "num_experts" in config else _mlp(own, normed))
    logits: Array = _norm(hidden, weights["transformer.ln_f.weight"], epsilon) @ weights["lm_head.weight"].T
    return logits


def rotary(config: dict[str, Any], length: int) -> tuple[Array, Array]:
    """Return cos and sin [length, head_dim]: base and scale grow in steps above the trained length."""
    width = config["hidden_size"] // config["n_head"]
    trained, base_length = config["training_seqlen"], config["base_seqlen"]
    seen = max(length, trained)
    alpha = max(2 ** math.ceil(math.log2(seen / base_length) + 1) - 1, 1)
    base = 10000.0 * alpha ** (width / (width - 2))
    scale = 1.0 if seen <= trained else 0.1 * math.log(seen / trained) + 1.0
    frequency = base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angle = np.outer(np.arange(length), frequency)
    angle = np.concatenate((angle, angle), axis=-1)
    return (np.cos(angle) * scale).astype(np.float32), (np.sin(angle) * scale).astype(np.float32)


def attention(
    layer: dict[str, Array], config: dict[str, Any], hidden: Array, cos: Array, sin: Array
) -> Array:
    """Causal grouped-query attention; ``key_value`` packs k then v of each key/value head."""
    length, heads = len(hidden), config["n_head"]
    kv_heads = config.get("num_key_value_heads") or heads
    width = config["hidden_size"] // heads
    query = (hidden @ layer["self_attention.query.weight"].T).reshape(length, heads, width)
    packed = (hidden @ layer["self_attention.key_value.weight"].T).reshape(length, kv_heads, 2 * width)
    key, value = packed[..., :width], packed[..., width:]
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    mixed = np.empty_like(query)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        scores = query[:, head] @ key[:, shared].T / np.float32(math.sqrt(width))
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf).astype(np.float32)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed[:, head] = (shares / shares.sum(axis=-1, keepdims=True)) @ value[:, shared]
    joined = mixed.reshape(length, -1)
    output: Array = joined @ layer["self_attention.dense.weight"].T + layer["self_attention.dense.bias"]
    return output


def _rotate(states: Array, cos: Array, sin: Array) -> Array:
    half = states.shape[-1] // 2
    turned = np.concatenate((-states[..., half:], states[..., :half]), axis=-1)
    rotated: Array = states * cos[:, None, :] + turned * sin[:, None, :]
    return rotated


def _norm(hidden: Array, weight: Array, epsilon: float) -> Array:
    mean_square = np.mean(np.square(hidden), axis=-1, keepdims=True, dtype=np.float32)
    normed: Array = weight * np.divide(hidden, np.sqrt(mean_square + epsilon), dtype=np.float32)
    return normed


def _mlp(layer: dict[str, Array], hidden: Array, prefix: str = "mlp.") -> Array:
    gate = hidden @ layer[f"{prefix}gate_proj.weight"].T
    up = hidden @ layer[f"{prefix}up_proj.weight"].T
    gated = gate / (1 + np.exp(-gate)) * up
    output: Array = gated @ layer[f"{prefix}down_proj.weight"].T + layer[f"{prefix}down_proj.bias"]
    return output


def routing(router: Array, states: Array, chosen: int) -> tuple[NDArray[np.intp], Array]:
    """The likeliest experts of each row, and their shares, which are made to sum to one."""
    scores = states @ router.T
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = shares / shares.sum(axis=-1, keepdims=True)
    experts = np.argsort(-shares, axis=-1, kind="stable")[:, :chosen]
    own = np.take_along_axis(shares, experts, axis=-1)
    return experts, own / (own.sum(axis=-1, keepdims=True) + np.float32(1e-9))


def _mixture(layer: dict[str, Array], config: dict[str, Any], hidden: Array) -> Array:
    experts, shares = routing(layer["mlp.router.weight"], hidden, config["num_experts_per_tok"])
    output = np.zeros_like(hidden)
    for row, (own, parts) in enumerate(zip(experts, shares, strict=True)):
        for expert, part in zip(own, parts, strict=True):
            output[row] += part * _mlp(layer, hidden[row], f"mlp.local_experts.{expert}.")
    return output
