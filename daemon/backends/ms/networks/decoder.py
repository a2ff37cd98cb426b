"""The pre-norm decoder of LLaMA, Mistral, Qwen, InternLM, FM-9G, Baichuan 2 and ChatGLM2.

Copied verbatim into model directories. A family is a ``Layout``: what its tensors are called, which of them
have biases, and how positions enter. Everything else is a value of config.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mindspore import nn

from daemon.backends.ms.layers import (
    AttentionBlock,
    AttentionOptions,
    Block,
    DecoderShape,
    Device,
    Embedding,
    FeedForward,
    LMHead,
    Rope,
    Stack,
    Tensor,
    alibi_slopes,
)

LAYER_API = 2
"""Version of the layer API this file was written for."""

Matrices = Mapping[str, tuple[str, ...]]
"""Name of a matrix -> what its rows are, in turn."""


def _apart(prefix: str, *roles: str) -> Matrices:
    return {f"{prefix}.{role}_proj": (role,) for role in roles}


def _biased(key: str, *roles: str) -> Mapping[str, str]:
    return dict.fromkeys(roles, key)


@dataclass(frozen=True)
class Layout:
    """What distinguishes a family."""

    attention: Matrices = field(default_factory=lambda: _apart("self_attn", "q", "k", "v", "o"))
    feed_forward: Matrices = field(default_factory=lambda: _apart("mlp", "gate", "up", "down"))
    biases: Mapping[str, str] = field(default_factory=dict)
    """First role of a matrix -> the config key that gives it a bias; "" always does."""
    grouped: bool = False
    """Packed queries, keys and values alternate by key head."""
    normed_heads: bool = False
    """Each head's queries and keys pass a norm of their own."""
    rotary_share: float = 1.0
    """How much of a head turns with the position."""
    adjacent_pairs: bool = False
    """Dimensions 2i and 2i + 1 turn together, not i and i + half."""
    windowed: str = "use_sliding_window"
    """The config key that switches sliding windows on."""
    first_window: int = 28
    """The first layer with a window, unless the config says."""
    unit_rows: bool = False
    """The rows of the head count with length one: Baichuan."""
    embedding: str = "model.embed_tokens"
    layer: str = "model.layers"
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    norm: str = "model.norm"
    head: str = "lm_head"


_QKV = ("q", "k", "v")
_MLP = ("gate", "up", "down")
LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(biases={**_biased("attention_bias", *_QKV, "o"), **_biased("mlp_bias", *_MLP)}),
    "mistral": Layout(windowed="sliding_window", first_window=0),
    "qwen2": Layout(biases=_biased("", *_QKV)),
    "qwen3": Layout(biases=_biased("attention_bias", *_QKV, "o"), normed_heads=True),
    "internlm2": Layout(
        attention={"attention.wqkv": _QKV, "attention.wo": ("o",)},
        feed_forward={
            "feed_forward.w1": ("gate",),
            "feed_forward.w3": ("up",),
            "feed_forward.w2": ("down",),
        },
        biases=_biased("bias", "q", "o"),
        grouped=True,
        embedding="model.tok_embeddings",
        norms=("attention_norm", "ffn_norm"),
        head="output",
    ),
    "internlm3": Layout(biases={**_biased("qkv_bias", *_QKV), **_biased("bias", "o", *_MLP)}),
    "fm9g": Layout(biases=_biased("qkv_bias", *_QKV)),
    "baichuan": Layout(attention={"self_attn.W_pack": _QKV, "self_attn.o_proj": ("o",)}, unit_rows=True),
    "chatglm": Layout(
        attention={"self_attention.query_key_value": _QKV, "self_attention.dense": ("o",)},
        feed_forward={"mlp.dense_h_to_4h": ("gate", "up"), "mlp.dense_4h_to_h": ("down",)},
        biases=_biased("add_qkv_bias", "q"),
        rotary_share=0.5,
        adjacent_pairs=True,
        embedding="transformer.embedding.word_embeddings",
        layer="transformer.encoder.layers",
        norm="transformer.encoder.final_layernorm",
        head="transformer.output_layer",
    ),
}
"""By ``model_type``."""


BAICHUAN_1_VOCAB = 64000
"""By which loaders tell it from Baichuan 2: its head is an ordinary one."""


@dataclass(frozen=True)
class Scales:
    """What multiplies the embedding, the residual branches and the logits."""

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], shape: DecoderShape) -> Scales:
        """FM-9G's; all one where ``scale`` is false or the depth's is not positive."""
        depth = float(config.get("scale_depth") or 0)
        if depth <= 0 or config.get("scale") is False:
            return cls()
        width = float(config.get("dim_model_base") or shape.hidden)
        return cls(float(config.get("scale_emb") or 1), depth / math.sqrt(shape.layers), width / shape.hidden)


class Network(nn.Cell):  # type: ignore[misc]  # MindSpore is untyped
    """The whole decoder, from tokens to logits."""

    def __init__(self, config: Mapping[str, Any], device: Device) -> None:
        super().__init__()
        shape, layout = DecoderShape.from_config(config), LAYOUTS[config["model_type"]]
        scales = Scales.from_config(config, shape)
        turned = int(shape.head_dim * layout.rotary_share)
        base = 10000.0 * float(config.get("rope_ratio") or 1)
        self.rope = Rope.from_config({"rope_theta": base, **config}, turned, shape.context)
        self.embedding = Embedding(device, shape, f"{layout.embedding}.weight", scale=scales.embedding)
        blocks: list[Block] = []
        for layer in range(shape.layers):
            name = f"{layout.layer}.{layer}"
            before, between = (f"{name}.{norm}.weight" for norm in layout.norms)
            attention = [*tensors(name, layout.attention, layout, config), *head_norms(name, layout)]
            mlp = list(tensors(name, layout.feed_forward, layout, config))
            options = AttentionOptions(
                rotary_dim=0 if sloped(config, layout) else turned,
                slopes=alibi_slopes(shape.heads) if sloped(config, layout) else (),
                residual_scale=scales.residual,
                rotary_factors=self.rope.factors,
                adjacent_pairs=layout.adjacent_pairs,
                window=window(config, layout, layer),
            )
            blocks.append(AttentionBlock(device, shape, before, attention, options))
            blocks.append(FeedForward(device, shape, between, mlp, residual_scale=scales.residual))
        self.blocks = Stack(device, shape, blocks)
        table = self.embedding if config.get("tie_word_embeddings") else f"{layout.head}.weight"
        unit_rows = layout.unit_rows and shape.vocab != BAICHUAN_1_VOCAB
        self.head = LMHead(
            device, shape, f"{layout.norm}.weight", table, logit_scale=scales.logits, unit_rows=unit_rows
        )

    def rope_for(self, prompt_len: int) -> tuple[float, float]:
        """Rotary base and the factor of cos and sin, fixed for a sequence when its prompt is known."""
        return self.rope.at(prompt_len)

    def construct(self, tokens: Any, step: Any) -> Any:
        return self.head(self.blocks(self.embedding(tokens, step), step), step)


def tensors(prefix: str, names: Matrices, layout: Layout, config: Mapping[str, Any]) -> Iterator[Tensor]:
    """The matrices of a block, then its biases."""
    for name, roles in names.items():
        kv_heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
        groups = kv_heads if layout.grouped and len(roles) > 1 else 1
        yield Tensor(f"{prefix}.{name}.weight", roles, groups)
        key = layout.biases.get(roles[0])
        if key == "" or (key is not None and config.get(key)):
            yield Tensor(f"{prefix}.{name}.bias", tuple(f"{role}_bias" for role in roles), groups)


def head_norms(prefix: str, layout: Layout) -> Iterator[Tensor]:
    """The norms of queries and keys."""
    for role in ("q_norm", "k_norm") if layout.normed_heads else ():
        yield Tensor(f"{prefix}.self_attn.{role}.weight", (role,))


def sloped(config: Mapping[str, Any], layout: Layout) -> bool:
    """Whether distance lowers the scores and nothing turns: Baichuan's 13B, which names no positions."""
    return layout.unit_rows and config.get("max_position_embeddings") is None


def window(config: Mapping[str, Any], layout: Layout, layer: int) -> int | None:
    """How many positions a token of this layer sees; ``None``: all before it."""
    size, kinds = config.get("sliding_window"), config.get("layer_types")
    if not size or not config.get(layout.windowed):
        return None
    if isinstance(kinds, list):
        return int(size) if kinds[layer] == "sliding_attention" else None
    first = config.get("max_window_layers", layout.first_window)
    return int(size) if layer >= int(first) else None
