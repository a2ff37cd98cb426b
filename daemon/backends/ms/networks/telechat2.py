"""TeleChat2 (3B, 7B, 35B, 115B, 39B-A12B): a pre-norm decoder with SwiGLU and rotary embedding.

Copied verbatim into model directories. Keys and values are stored packed per head; only the output
projections have a bias; beyond the training length the rotary base grows with the prompt (dynamic NTK). Where
the config counts experts, each layer's feed-forward is a mixture of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspore import nn

from daemon.backends.ms.layers import (
    AttentionBlock,
    Block,
    DecoderShape,
    Device,
    Embedding,
    FeedForward,
    LMHead,
    MoE,
    MoEOptions,
    Stack,
    Tensor,
    dynamic_ntk,
)

LAYER_API = 2
"""Version of the layer API this file was written for."""


class Network(nn.Cell):  # type: ignore[misc]  # MindSpore is untyped
    """The whole decoder, from tokens to logits."""

    def __init__(self, config: Mapping[str, Any], device: Device) -> None:
        super().__init__()
        shape = DecoderShape.from_config(config)
        self.head_dim = shape.head_dim
        self.training_len = int(config.get("training_seqlen") or shape.context)
        self.base_len = int(config.get("base_seqlen") or self.training_len)
        self.embedding = Embedding(device, shape, "transformer.word_embeddings.weight")
        blocks: list[Block] = []
        for layer in range(shape.layers):
            name = f"transformer.h.{layer}"
            feed_forward = (
                _mixture(name, device, shape, config) if shape.experts else _dense(name, device, shape)
            )
            blocks += [_attention(name, device, shape), feed_forward]
        self.blocks = Stack(device, shape, blocks)
        table = self.embedding if config.get("tie_word_embeddings") else "lm_head.weight"
        self.head = LMHead(device, shape, "transformer.ln_f.weight", table)

    def rope_for(self, prompt_len: int) -> tuple[float, float]:
        """Rotary base and the factor of cos and sin, fixed for a sequence when its prompt is known."""
        return dynamic_ntk(
            prompt_len, dim=self.head_dim, training_len=self.training_len, base_len=self.base_len
        )

    def construct(self, tokens: Any, step: Any) -> Any:
        return self.head(self.blocks(self.embedding(tokens, step), step), step)


def _attention(name: str, device: Device, shape: DecoderShape) -> AttentionBlock:
    prefix = f"{name}.self_attention"
    tensors = [
        Tensor(f"{prefix}.query.weight", ("q",)),
        Tensor(f"{prefix}.key_value.weight", ("k", "v"), groups=shape.kv_heads),
        Tensor(f"{prefix}.dense.weight", ("o",)),
        Tensor(f"{prefix}.dense.bias", ("o_bias",)),
    ]
    return AttentionBlock(device, shape, f"{name}.input_layernorm.weight", tensors)


def _dense(name: str, device: Device, shape: DecoderShape) -> FeedForward:
    norm = f"{name}.post_attention_layernorm.weight"
    return FeedForward(device, shape, norm, _matrices(f"{name}.mlp"))


def _mixture(name: str, device: Device, shape: DecoderShape, config: Mapping[str, Any]) -> MoE:
    norm, router = f"{name}.post_attention_layernorm.weight", f"{name}.mlp.router.weight"
    experts = [_matrices(f"{name}.mlp.local_experts.{expert}") for expert in range(shape.experts)]
    renormalise = config.get("norm_topk_prob") is not False and shape.active_experts > 1
    return MoE(
        device, shape, norm, router, experts, MoEOptions(shape.active_experts, renormalise=renormalise)
    )


def _matrices(prefix: str) -> list[Tensor]:
    """Of a feed-forward or of one expert."""
    return [
        Tensor(f"{prefix}.gate_proj.weight", ("gate",)),
        Tensor(f"{prefix}.up_proj.weight", ("up",)),
        Tensor(f"{prefix}.down_proj.weight", ("down",)),
        Tensor(f"{prefix}.down_proj.bias", ("down_bias",)),
    ]
