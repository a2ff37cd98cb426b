"""Baichuan 2: packed queries, keys and values, a head of unit rows, and at 13B slopes instead of rotation."""

from __future__ import annotations

from dataclasses import replace

from builder.families.base import ControlTokens, FieldRule, TensorRule
from builder.families.llama import FIELDS, LAYER, LLAMA, MATRICES, OTHERS

_CONTEXT = "model_max_length"
_OWN = (
    "seq_length",
    "max_position_embeddings",
    "num_key_value_heads",
    "rope_theta",
    "rope_scaling",
    "head_dim",
)

BAICHUAN = replace(
    LLAMA,
    name="baichuan",
    model_type="baichuan",
    architectures=("BaichuanForCausalLM",),
    yaml_arch="Baichuan13BV2ForCausalLM",
    fields=(
        *(rule for rule in FIELDS if rule.hf not in _OWN),
        FieldRule(_CONTEXT, "int", "seq_length", required=True, minimum=2),
        FieldRule("max_position_embeddings", "int", minimum=2),
    ),
    tensors=(
        *OTHERS,
        *(
            rule
            for rule in MATRICES
            if not rule.pattern.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        ),
        TensorRule(LAYER + "self_attn.W_pack.weight", ("3*hidden_size", "hidden_size"), linear=True),
    ),
    longest=None,
    unit_head=True,
    kv_heads="num_attention_heads",
    context=_CONTEXT,
    adds_bos=False,
    control_tokens=ControlTokens(125696, {195: "<reserved_106>", 196: "<reserved_107>"}),
    chat_template="chat_baichuan2.jinja",
)
