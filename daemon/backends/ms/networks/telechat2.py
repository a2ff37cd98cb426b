"""TeleChat2, the dense models (3B, 7B, 35B, 115B): a pre-norm decoder with SwiGLU and rotary embedding.

Copied verbatim into model directories. Keys and values are stored packed per head; only the output
projections have a bias; beyond the training length the rotary base grows with the prompt (dynamic NTK).
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
    dynamic_ntk,
)

LAYER_API = 1
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
        blocks: list[nn.Cell] = []
        for layer in range(shape.layers):
            blocks += self._layer(f"transformer.h.{layer}", device, shape)
        self.blocks = nn.CellList(blocks)
        self.head = LMHead(device, shape, "transformer.ln_f.weight", "lm_head.weight")

    @staticmethod
    def _layer(name: str, device: Device, shape: DecoderShape) -> list[nn.Cell]:
        attention, mlp = f"{name}.self_attention", f"{name}.mlp"
        return [
            AttentionBlock(
                device,
                shape,
                norm=f"{name}.input_layernorm.weight",
                tensors=[
                    Tensor(f"{attention}.query.weight", ("q",)),
                    Tensor(f"{attention}.key_value.weight", ("k", "v"), groups=shape.kv_heads),
                    Tensor(f"{attention}.dense.weight", ("o",)),
                    Tensor(f"{attention}.dense.bias", ("o_bias",)),
                ],
            ),
            FeedForward(
                device,
                shape,
                norm=f"{name}.post_attention_layernorm.weight",
                tensors=[
                    Tensor(f"{mlp}.gate_proj.weight", ("gate",)),
                    Tensor(f"{mlp}.up_proj.weight", ("up",)),
                    Tensor(f"{mlp}.down_proj.weight", ("down",)),
                    Tensor(f"{mlp}.down_proj.bias", ("down_bias",)),
                ],
            ),
        ]

    def rope_for(self, prompt_len: int) -> tuple[float, float]:
        """Rotary base and the factor of cos and sin, fixed for a sequence when its prompt is known."""
        return dynamic_ntk(
            prompt_len, dim=self.head_dim, training_len=self.training_len, base_len=self.base_len
        )

    def construct(self, tokens: Any, step: Any) -> Any:
        x = self.embedding(tokens, step)
        for block in self.blocks:
            x = block(x, step)
        return self.head(x, step)
