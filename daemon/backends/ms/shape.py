"""The dimensions of a decoder, from a HuggingFace-shaped config.json in the words of any family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.faults import Fault, FaultKind

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embed"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "multi_query_group_num", "n_kv_heads"),
    "head_dim": ("head_dim", "kv_channels"),
    "inner": ("intermediate_size", "ffn_hidden_size"),
    "vocab": ("padded_vocab_size", "vocab_size"),
    "eps": ("rms_norm_eps", "layer_norm_epsilon", "layernorm_epsilon"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "expert_num"),
    "active_experts": ("num_experts_per_tok", "num_experts_chosen", "moe_topk"),
    "context": ("max_position_embeddings", "seq_length", "model_max_length", "max_seq_len"),
}

_KV_BYTES: Mapping[str, tuple[int, int]] = {
    "float32": (4, 0),
    "bfloat16": (2, 0),
    "float16": (2, 0),
    "int8": (1, 4),
}
"""Of an element, and of the scale that those of a position and head share."""


def lookup(config: Mapping[str, Any], name: str) -> Any:
    """The value of a dimension under whichever alias the config uses, or ``None``."""
    for alias in _ALIASES[name]:
        if config.get(alias) is not None:
            return config[alias]
    return None


def _required(config: Mapping[str, Any], name: str) -> float:
    value = lookup(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        spellings = " or ".join(_ALIASES[name])
        message = f"config.json needs a positive number {spellings}, and has {value!r}"
        raise Fault(FaultKind.INVALID_MODEL, message)
    return value


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Dimensions shared by all blocks of a decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Width of the feed-forward."""
    vocab: int
    eps: float
    """Of every RMSNorm."""
    context: int
    """Positions a sequence may have."""
    experts: int = 0
    """Of a mixture; 0: there is none."""
    active_experts: int = 0
    """Experts a token is sent to."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DecoderShape:
        """Raises ``Fault`` naming the field that is missing or makes no sense."""
        hidden, heads = int(_required(config, "hidden")), int(_required(config, "heads"))
        kv_heads = int(lookup(config, "kv_heads") or heads)
        head_dim = int(lookup(config, "head_dim") or hidden // heads)
        if heads % kv_heads or head_dim % 2:
            message = f"{heads} heads of {head_dim} cannot share {kv_heads} key-value heads"
            raise Fault(FaultKind.INVALID_MODEL, message)
        limits = (config.get("serving") or {}).get("limits") or {}
        context = limits.get("max_seq_len") or _required(config, "context")
        return cls(
            hidden=hidden,
            layers=int(_required(config, "layers")),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            inner=int(_required(config, "inner")),
            vocab=int(_required(config, "vocab")),
            eps=float(_required(config, "eps")),
            context=int(context),
            experts=int(lookup(config, "experts") or 0),
            active_experts=int(lookup(config, "active_experts") or 0),
        )

    def kv_bytes_per_block(self, kv_dtype: str) -> int:
        """Memory of one KV block over all layers: 16 positions, values padded to 16 dimensions."""
        element_bytes, scale_bytes = _KV_BYTES[kv_dtype]
        padded = -(-self.head_dim // 16) * 16
        position = (self.head_dim + padded) * element_bytes + 2 * scale_bytes
        return self.layers * self.kv_heads * position * 16
