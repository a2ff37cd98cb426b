"""The layouts of every family, as data: HuggingFace's, mindformers' of both generations, and others'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from builder.checkpoints.layouts.base import Entry, Layout

HF, R1, MCORE, META, BMTRAIN = "hf", "mindformers-r1", "mindformers", "meta", "bmtrain"
_QKV = ("q", "k", "v")
_GATE_UP = ("gate", "up")


@dataclass(frozen=True)
class FamilyLayouts:
    """Which kinds of checkpoint a family has."""

    hf: Layout
    r1: Layout
    """mindformers 1.x with queries, keys and values as its script writes them without ``qkv_concat``."""
    r1_qkv: Layout
    """mindformers 1.x with ``qkv_concat: True``."""
    qkv_by_default: bool = False
    """Whether the family's own script writes the concatenated form."""
    others: Mapping[str, Layout] = field(default_factory=dict)

    def all(self) -> tuple[Layout, ...]:
        """Every layout that a source may have; the likelier first."""
        variants = (_swapped(self.r1), _swapped(self.r1_qkv))
        return (self.hf, self.r1, self.r1_qkv, *self.others.values(), *(one for one in variants if one))

    def named(self, name: str, qkv_concat: bool | None = None, gmm: bool = False) -> Layout | None:
        """The layout of a name; ``None`` when the family has none."""
        if name == HF:
            return self.hf
        if name != R1:
            return self.others.get(name)
        concatenated = self.qkv_by_default if qkv_concat is None else qkv_concat
        layout = self.r1_qkv if concatenated else self.r1
        return _swapped(layout) or layout if gmm else layout


def _swapped(layout: Layout) -> Layout | None:
    """The layout with experts as the grouped product wants them; ``None`` without experts."""
    if not any(entry.packing == "experts" for entry in layout.entries):
        return None
    entries = (
        replace(entry, packing="experts_swapped") if entry.packing == "experts" else entry
        for entry in layout.entries
    )
    return replace(layout, name=f"{layout.name} (gmm)", entries=tuple(entries))


def _plain(prefix: str, **names: str) -> tuple[Entry, ...]:
    """Entries of one part each: ``part=name``."""
    return tuple(Entry(f"{prefix}{name}", (part,)) for part, name in names.items())


def _layered(layer: str, outer: Mapping[str, str], inner: Mapping[str, str]) -> tuple[Entry, ...]:
    return (*_plain("", **outer), *_plain(layer, **inner))


_LLAMA_NORMS = {"attention_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight"}
_LLAMA_HF = Layout(
    HF,
    _layered(
        "model.layers.{layer}.",
        {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"},
        {
            **_LLAMA_NORMS,
            **{part: f"self_attn.{part}_proj.{{kind}}" for part in (*_QKV, "o")},
            **{part: f"mlp.{part}_proj.{{kind}}" for part in ("gate", "up", "down")},
            "q_norm": "self_attn.q_norm.weight",
            "k_norm": "self_attn.k_norm.weight",
        },
    ),
)
_R1_OUTER = {
    "embed": "model.tok_embeddings.embedding_weight",
    "norm": "model.norm_out.weight",
    "head": "lm_head.weight",
}
_R1_NORMS = {"attention_norm": "attention_norm.weight", "ffn_norm": "ffn_norm.weight"}
_R1_LAYER = "model.layers.{layer}."
_R1_ATTENTION = {"q": "attention.wq.{kind}", "k": "attention.wk.{kind}", "v": "attention.wv.{kind}"}
_R1_FFN = {"gate": "feed_forward.w1.{kind}", "up": "feed_forward.w3.{kind}"}
_R1_DOWN = {"o": "attention.wo.{kind}", "down": "feed_forward.w2.{kind}"}
_R1_COMMON = _layered(_R1_LAYER, _R1_OUTER, {**_R1_NORMS, **_R1_DOWN})
_R1_FUSED_QKV = Entry(_R1_LAYER + "attention.w_qkv.{kind}", _QKV, "blocks")
_R1_FUSED_FFN = Entry(_R1_LAYER + "feed_forward.w_gate_hidden.{kind}", _GATE_UP, "blocks")
_LLAMA_R1 = Layout(R1, (*_R1_COMMON, *_plain(_R1_LAYER, **_R1_ATTENTION, **_R1_FFN)))
_LLAMA_R1_QKV = Layout(f"{R1} (qkv)", (*_R1_COMMON, _R1_FUSED_QKV, _R1_FUSED_FFN))

_MCORE_ENTRIES = _layered(
    "decoder.layers.{layer}.",
    {
        "embed": "embedding.word_embeddings.weight",
        "norm": "decoder.final_layernorm.weight",
        "head": "output_layer.weight",
    },
    {
        "attention_norm": "input_layernorm.weight",
        "ffn_norm": "pre_mlp_layernorm.weight",
        **{part: f"self_attention.linear_{part}.{{kind}}" for part in _QKV},
        "o": "self_attention.linear_proj.{kind}",
        "gate": "mlp.gating.{kind}",
        "up": "mlp.hidden.{kind}",
        "down": "mlp.linear_fc2.{kind}",
        "q_norm": "self_attention.q_layernorm.weight",
        "k_norm": "self_attention.k_layernorm.weight",
    },
)
_MCORE = Layout(MCORE, _MCORE_ENTRIES)

_META_LAYER = "layers.{layer}."
_META = Layout(
    META,
    (
        *_layered(
            _META_LAYER,
            {"embed": "tok_embeddings.weight", "norm": "norm.weight", "head": "output.weight"},
            {
                **_R1_NORMS,
                "v": "attention.wv.weight",
                "o": "attention.wo.weight",
                "gate": "feed_forward.w1.weight",
                "up": "feed_forward.w3.weight",
                "down": "feed_forward.w2.weight",
            },
        ),
        Entry(_META_LAYER + "attention.wq.weight", ("q",), "interleaved"),
        Entry(_META_LAYER + "attention.wk.weight", ("k",), "interleaved"),
    ),
)

_LLAMA = FamilyLayouts(_LLAMA_HF, _LLAMA_R1, _LLAMA_R1_QKV, others={MCORE: _MCORE, META: _META})

_TELECHAT_LAYER = "transformer.h.{layer}."
_TELECHAT_HF = Layout(
    HF,
    (
        *_layered(
            _TELECHAT_LAYER,
            {
                "embed": "transformer.word_embeddings.weight",
                "norm": "transformer.ln_f.weight",
                "head": "lm_head.weight",
            },
            {
                **_LLAMA_NORMS,
                "q": "self_attention.query.{kind}",
                "o": "self_attention.dense.{kind}",
                **{part: f"mlp.{part}_proj.{{kind}}" for part in ("gate", "up", "down")},
                "router": "mlp.router.weight",
                **{
                    f"expert_{part}": f"mlp.local_experts.{{expert}}.{part}_proj.{{kind}}"
                    for part in ("gate", "up", "down")
                },
            },
        ),
        Entry(_TELECHAT_LAYER + "self_attention.key_value.{kind}", ("k", "v"), "heads"),
    ),
)
_R1_EXPERTS = (
    Entry(_R1_LAYER + "feed_forward.router.dense.weight", ("router",)),
    Entry(_R1_LAYER + "feed_forward.ffn.w1.{kind}", ("expert_gate",), "experts"),
    Entry(_R1_LAYER + "feed_forward.ffn.w3.{kind}", ("expert_up",), "experts"),
    Entry(_R1_LAYER + "feed_forward.ffn.w2.{kind}", ("expert_down",), "experts"),
)
_TELECHAT = FamilyLayouts(
    _TELECHAT_HF,
    Layout(
        R1,
        (
            *_R1_COMMON,
            *_R1_EXPERTS,
            *_plain(_R1_LAYER, q="attention.wq.{kind}", **_R1_FFN),
            Entry(_R1_LAYER + "attention.wk_v.{kind}", ("k", "v"), "heads"),
        ),
    ),
    Layout(f"{R1} (qkv)", (*_R1_COMMON, *_R1_EXPERTS, _R1_FUSED_QKV, _R1_FUSED_FFN)),
    others={MCORE: _MCORE},
)

_BAICHUAN_HF = Layout(
    HF,
    (
        *(entry for entry in _LLAMA_HF.entries if entry.parts[0] not in _QKV),
        Entry("model.layers.{layer}.self_attn.W_pack.{kind}", _QKV, "blocks"),
    ),
)
_BAICHUAN = FamilyLayouts(_BAICHUAN_HF, _LLAMA_R1, _LLAMA_R1_QKV)

_INTERNLM2_LAYER = "model.layers.{layer}."
_INTERNLM2_HF = Layout(
    HF,
    (
        *_layered(
            _INTERNLM2_LAYER,
            {
                "embed": "model.tok_embeddings.weight",
                "norm": "model.norm.weight",
                "head": "output.weight",
            },
            {**_R1_NORMS, **_R1_DOWN, **_R1_FFN},
        ),
        Entry(_INTERNLM2_LAYER + "attention.wqkv.{kind}", _QKV, "groups"),
    ),
)
_INTERNLM2_R1_QKV = Layout(
    f"{R1} (qkv)",
    (
        *_R1_COMMON,
        *_plain(_R1_LAYER, **_R1_FFN),
        Entry(_R1_LAYER + "attention.w.{kind}", _QKV, "groups"),
    ),
)
_INTERNLM2 = FamilyLayouts(_INTERNLM2_HF, _LLAMA_R1, _INTERNLM2_R1_QKV, qkv_by_default=True)

_CHATGLM_LAYER = "transformer.encoder.layers.{layer}."
_CHATGLM_INNER = _plain(
    _CHATGLM_LAYER, **_LLAMA_NORMS, o="self_attention.dense.{kind}", down="mlp.dense_4h_to_h.{kind}"
)
_CHATGLM_OUTER = {
    "norm": "transformer.encoder.final_layernorm.weight",
    "head": "transformer.output_layer.weight",
}
_CHATGLM_FUSED = (
    Entry(_CHATGLM_LAYER + "self_attention.query_key_value.{kind}", _QKV, "blocks"),
    Entry(_CHATGLM_LAYER + "mlp.dense_h_to_4h.{kind}", _GATE_UP, "blocks"),
)
_CHATGLM_HF = Layout(
    HF,
    (
        *_plain("", embed="transformer.embedding.word_embeddings.weight", **_CHATGLM_OUTER),
        *_CHATGLM_INNER,
        *_CHATGLM_FUSED,
    ),
)
_CHATGLM_R1_COMMON = (
    *_plain("", embed="transformer.embedding.embedding_weight", **_CHATGLM_OUTER),
    *_CHATGLM_INNER,
)
_CHATGLM = FamilyLayouts(
    _CHATGLM_HF,
    Layout(
        R1,
        (
            *_CHATGLM_R1_COMMON,
            *_plain(_CHATGLM_LAYER, **{part: f"self_attention.w{part}.{{kind}}" for part in _QKV}),
            *_plain(_CHATGLM_LAYER, gate="mlp.dense_left.{kind}", up="mlp.dense_right.{kind}"),
        ),
    ),
    Layout(f"{R1} (qkv)", (*_CHATGLM_R1_COMMON, *_CHATGLM_FUSED)),
    qkv_by_default=True,
)

_BMTRAIN_LAYER = "encoder.layers.{layer}."
_BMTRAIN = Layout(
    BMTRAIN,
    _layered(
        _BMTRAIN_LAYER,
        {
            "embed": "input_embedding.weight",
            "norm": "encoder.output_layernorm.weight",
            "head": "lm_head.weight",
        },
        {
            "attention_norm": "self_att.layernorm_before_attention.weight",
            "ffn_norm": "ffn.layernorm_before_ffn.weight",
            **{part: f"self_att.self_attention.project_{part}.{{kind}}" for part in _QKV},
            "o": "self_att.self_attention.attention_out.{kind}",
            "gate": "ffn.ffn.w_in.w_0.{kind}",
            "up": "ffn.ffn.w_in.w_1.{kind}",
            "down": "ffn.ffn.w_out.{kind}",
        },
    ),
)
_FM9G = replace(_LLAMA, others={BMTRAIN: _BMTRAIN, MCORE: _MCORE})

LAYOUTS: Mapping[str, FamilyLayouts] = MappingProxyType(
    {
        "telechat": _TELECHAT,
        "telechat_moe": _TELECHAT,
        "llama": _LLAMA,
        "qwen2": replace(_LLAMA, others={MCORE: _MCORE}),
        "qwen3": replace(_LLAMA, others={MCORE: _MCORE}),
        "mistral": replace(_LLAMA, others={MCORE: _MCORE}),
        "internlm3": replace(_LLAMA, others={MCORE: _MCORE}),
        "fm9g": _FM9G,
        "baichuan": _BAICHUAN,
        "internlm2": _INTERNLM2,
        "chatglm": _CHATGLM,
    }
)
"""By the name of the family."""
