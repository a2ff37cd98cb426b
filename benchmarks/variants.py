"""Other shapes of model, each against the time that the base model's efficiency predicts for it.

A step takes (bytes / read bandwidth + FLOP / FMA peak) / efficiency, with the base model's efficiency.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.engines import Setting
from benchmarks.machine import Bounds
from benchmarks.synthetic import Shape, tensor_shapes
from builder.families import family_of_config

PROMPT, LONG, OUTPUT = 1024, 8192, 64
_EXPERT = re.compile(r"experts\.\d+\.")
_TABLES = ("embed_tokens", "word_embeddings")
_HEADS = ("lm_head",)
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Variant:
    """A float32 model and what is asked of it."""

    name: str
    config: Mapping[str, Any]
    prompt: int = PROMPT


@dataclass(frozen=True, slots=True)
class Work:
    """What a computation reads and multiplies."""

    read_bytes: float
    flop: float

    def seconds(self, bounds: Bounds) -> float:
        return self.read_bytes / (bounds.read_gb_s * 1e9) + self.flop / (bounds.fma_gflop_s * 1e9)


def variants(setting: Setting) -> list[Variant]:
    """The base model first."""
    base = setting.shape
    small = base if setting.options.small else replace(base, layers=8)
    grouped = replace(small, hidden=16 * base.head_dim, heads=16)
    return [
        Variant("base", base.to_config()),
        Variant(f"{LONG} tokens", base.to_config(), LONG),
        *(
            Variant(f"heads 1:{16 // kv_heads}", replace(grouped, kv_heads=kv_heads).to_config())
            for kv_heads in (16, 4, 1)
        ),
        Variant("ALiBi", _baichuan(grouped)),
        Variant("experts 2 of 8", _experts(small)),
    ]


def _baichuan(shape: Shape) -> dict[str, Any]:
    """Baichuan2-13B's architecture: ALiBi in place of rotation, a head of its own."""
    config = replace(shape, kv_heads=shape.heads).to_config()
    unused = ("num_key_value_heads", "rope_theta", "use_sliding_window", "max_position_embeddings")
    kept = {key: value for key, value in config.items() if key not in unused}
    return {
        **kept,
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "model_max_length": shape.context,
        "tie_word_embeddings": False,
    }


def _experts(shape: Shape) -> dict[str, Any]:
    """A mixture of experts as TeleChat2's: two of eight for a token, each a quarter of the dense width."""
    return {
        "architectures": ["TelechatForCausalLM"],
        "model_type": "telechat",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "ffn_hidden_size": shape.inner // 4,
        "layer_norm_epsilon": 1e-6,
        "seq_length": shape.context,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What one model reads and multiplies."""

    layer_weights: int
    """Of matrices that every token is multiplied with, experts chosen included."""
    stored_weights: int
    """The same with all experts: what a long prompt reads."""
    head_weights: int
    kv_weights: int
    """Of the last layer's matrices, those that make keys and values."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Arithmetic:
        """Raises ``Fault`` for a model that the builder does not know."""
        matrices = {name: size[0] * size[1] for name, size in tensor_shapes(config).items() if len(size) == 2}
        tables = {name: size for name, size in matrices.items() if any(word in name for word in _TABLES)}
        heads = {name: size for name, size in matrices.items() if any(word in name for word in _HEADS)}
        inner = {name: size for name, size in matrices.items() if name not in tables and name not in heads}
        experts = sum(size for name, size in inner.items() if _EXPERT.search(name))
        stored = sum(inner.values())
        chosen = experts * config.get("num_experts_per_tok", 0) // (config.get("num_experts") or 1)
        family = family_of_config(config, "config.json")
        kv_heads, head_dim = config.get(family.kv_heads) or config[family.heads], family.head_dim(config)
        return cls(
            layer_weights=stored - experts + chosen,
            stored_weights=stored,
            head_weights=sum((heads or tables).values()),
            kv_weights=2 * kv_heads * head_dim * config["hidden_size"],
            layers=config[family.layers],
            heads=config[family.heads],
            kv_heads=kv_heads,
            head_dim=head_dim,
        )

    @property
    def kv_bytes(self) -> int:
        """Of one position, in float32."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _FLOAT_BYTES

    def decode(self, context: int) -> Work:
        """One token after so many."""
        weights = self.layer_weights + self.head_weights
        attention = 4 * self.layers * self.heads * self.head_dim * context
        return Work(_FLOAT_BYTES * weights + self.kv_bytes * context, 2 * weights + attention)

    def prefill(self, tokens: int) -> Work:
        """What a whole prompt needs: of its last layer only keys and values, but for its last token."""
        layer = self.layer_weights // self.layers
        weights = (self.layer_weights - layer + self.kv_weights) * tokens
        weights += layer - self.kv_weights + self.head_weights
        attended = (self.layers - 1) * tokens**2 / 2 + tokens
        flop = 2 * weights + 4 * self.heads * self.head_dim * attended
        return Work(_FLOAT_BYTES * (self.stored_weights + self.head_weights) + self.kv_bytes * tokens, flop)
