"""TeleChat2's decoder in plain torch, as large as ``config.json`` says.

Parameter names are the published ones, so ``state_dict()`` is the checkpoint. Sequences stay within
``training_seqlen``, where the dynamic rotary scaling is the identity; it is therefore left out here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """The numbers of ``config.json`` that decide the network's shape."""

    vocab_size: int
    hidden_size: int
    n_layer: int
    n_head: int
    num_key_value_heads: int
    ffn_hidden_size: int
    layer_norm_epsilon: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.n_head

    @classmethod
    def read(cls, path: Path) -> "Shape":
        """Read the shape from a ``config.json``."""
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * scaled.to(hidden.dtype)


def rotary_table(length: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin of shape [length, head_dim] for half-split rotation, base 10000."""
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention; ``key_value`` holds k then v of each key/value head in turn."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.query = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.key_value = nn.Linear(
            shape.hidden_size, 2 * shape.num_key_value_heads * shape.head_dim, bias=False
        )
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        heads, kv_heads, width = self.shape.n_head, self.shape.num_key_value_heads, self.shape.head_dim
        query = self.query(hidden).view(batch, length, heads, width).transpose(1, 2)
        packed = self.key_value(hidden).view(batch, length, kv_heads, 2 * width).transpose(1, 2)
        key, value = (
            part.repeat_interleave(heads // kv_heads, dim=1) for part in packed.split(width, dim=-1)
        )
        query, key = _rotate(query, cos, sin).to(value.dtype), _rotate(key, cos, sin).to(value.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.dense(mixed.transpose(1, 2).reshape(batch, length, -1))
        return output


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.ffn_hidden_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.ffn_hidden_size, bias=False)
        self.down_proj = nn.Linear(shape.ffn_hidden_size, shape.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class Block(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.layer_norm_epsilon)
        self.self_attention = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.layer_norm_epsilon)
        self.mlp = MLP(shape)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attention(self.input_layernorm(hidden), cos, sin)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class Body(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.ln_f = RMSNorm(shape.hidden_size, shape.layer_norm_epsilon)
        self.head_dim = shape.head_dim

    def forward(self, ids: Tensor) -> Tensor:
        cos, sin = rotary_table(ids.shape[1], self.head_dim, ids.device)
        hidden = self.word_embeddings(ids)
        for block in self.h:
            hidden = block(hidden, cos, sin)
        output: Tensor = self.ln_f(hidden)
        return output


class TeleChat2(nn.Module):
    """The language model: right-padded ids in, logits out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.transformer = Body(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights; the layers that write to the residual stream start smaller."""
        depth = len(self.transformer.h)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                writes = name.endswith(("dense.weight", "down_proj.weight"))
                deviation = 0.02 / (2 * depth) ** 0.5 if writes else 0.02
                nn.init.normal_(parameter, std=deviation, generator=generator)

    def forward(self, ids: Tensor, where: Tensor | None = None) -> Tensor:
        """Return logits at every position, or only where the boolean mask ``where`` is set."""
        hidden = self.transformer(ids)
        logits: Tensor = self.lm_head(hidden if where is None else hidden[where])
        return logits
