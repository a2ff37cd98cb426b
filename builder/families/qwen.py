"""Qwen 1.5, 2, 2.5 and 3, the dense models: LLaMA's decoder with biases or with normed heads."""

from __future__ import annotations

from dataclasses import replace

from builder.families.base import FieldRule, TensorRule
from builder.families.llama import FIELDS, LAYER, LLAMA, MATRICES, OTHERS, bias

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    fields=FIELDS,
    tensors=(*OTHERS, *MATRICES, *(bias(name) for name in ("q_proj", "k_proj", "v_proj"))),
    yaml_values={"qkv_has_bias": True},
    adds_bos=False,
)

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    yaml_types=("Qwen3Config",),
    yaml_arch="Qwen3ForCausalLM",
    fields=(*FIELDS, FieldRule("attention_bias", "bool", default=False)),
    tensors=(
        *OTHERS,
        *MATRICES,
        *(bias(name, "attention_bias") for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        TensorRule(LAYER + "self_attn.q_norm.weight", ("head_dim",)),
        TensorRule(LAYER + "self_attn.k_norm.weight", ("head_dim",)),
    ),
    yaml_values={},
)
