"""LLaMA 2 and 3 and Qwen 1.5 to 2.5 (dense): a pre-norm decoder with SwiGLU and rotary embedding.

Copied verbatim into model directories. Heads may share keys and values, projections may have biases (Qwen's
queries, keys and values always do), and the head may be the embedding's own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspore import nn

from daemon.backends.ms.layers import (
    AttentionBlock,
    DecoderShape,
    Device,
    Embedding,
    FeedForward,
    LMHead,
    Tensor,
)

LAYER_API = 1
"""Version of the layer API this file was written for."""

ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
FEED_FORWARD = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def biased_roles(config: Mapping[str, Any]) -> set[str]:
    """The roles whose projection has a bias."""
    if config.get("model_type") == "qwen2":
        return {"q", "k", "v"}
    attention = set(ATTENTION) if config.get("attention_bias") else set()
    return attention | (set(FEED_FORWARD) if config.get("mlp_bias") else set())


def tensors(prefix: str, names: Mapping[str, str], biased: set[str]) -> list[Tensor]:
    """The matrices of a block, then its biases."""
    weights = [Tensor(f"{prefix}.{name}.weight", (role,)) for role, name in names.items()]
    biases = [(role, name) for role, name in names.items() if role in biased]
    return weights + [Tensor(f"{prefix}.{name}.bias", (f"{role}_bias",)) for role, name in biases]


class Network(nn.Cell):  # type: ignore[misc]  # MindSpore is untyped
    """The whole decoder, from tokens to logits."""

    def __init__(self, config: Mapping[str, Any], device: Device) -> None:
        super().__init__()
        shape = DecoderShape.from_config(config)
        biased = biased_roles(config)
        self.rope_theta = float(config.get("rope_theta") or 10000.0)
        self.embedding = Embedding(device, shape, "model.embed_tokens.weight")
        blocks: list[nn.Cell] = []
        for layer in range(shape.layers):
            name = f"model.layers.{layer}"
            attention = tensors(f"{name}.self_attn", ATTENTION, biased)
            mlp = tensors(f"{name}.mlp", FEED_FORWARD, biased)
            blocks.append(AttentionBlock(device, shape, f"{name}.input_layernorm.weight", attention))
            blocks.append(FeedForward(device, shape, f"{name}.post_attention_layernorm.weight", mlp))
        self.blocks = nn.CellList(blocks)
        table = self.embedding if config.get("tie_word_embeddings") else "lm_head.weight"
        self.head = LMHead(device, shape, "model.norm.weight", table)

    def rope_for(self, prompt_len: int) -> tuple[float, float]:
        """Rotary base and the factor of cos and sin: the same for every sequence."""
        return self.rope_theta, 1.0

    def construct(self, tokens: Any, step: Any) -> Any:
        x = self.embedding(tokens, step)
        for block in self.blocks:
            x = block(x, step)
        return self.head(x, step)
