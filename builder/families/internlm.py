"""InternLM 2 and 2.5, whose queries, keys and values are packed, and InternLM 3, which is LLaMA's decoder."""

from __future__ import annotations

from dataclasses import replace

from builder.families.base import ControlTokens, FieldRule, TensorRule
from builder.families.llama import FIELDS, KEY_VALUE, LAYER, LLAMA, MATRICES, OTHERS, QUERY, bias

_PACKED = f"{QUERY}+2*{KEY_VALUE}"
_INNER = "intermediate_size"

INTERNLM2 = replace(
    LLAMA,
    name="internlm2",
    model_type="internlm2",
    architectures=("InternLM2ForCausalLM",),
    yaml_types=("InternLM2Config",),
    yaml_arch="InternLM2ForCausalLM",
    fields=(*FIELDS, FieldRule("bias", "bool", default=False)),
    tensors=(
        TensorRule("model.tok_embeddings.weight", ("vocab_size", "hidden_size")),
        TensorRule(LAYER + "attention_norm.weight", ("hidden_size",)),
        TensorRule(LAYER + "ffn_norm.weight", ("hidden_size",)),
        TensorRule("model.norm.weight", ("hidden_size",)),
        TensorRule("output.weight", ("vocab_size", "hidden_size"), unless="tie_word_embeddings", linear=True),
        TensorRule(LAYER + "attention.wqkv.weight", (_PACKED, "hidden_size"), linear=True),
        TensorRule(LAYER + "attention.wo.weight", ("hidden_size", QUERY), linear=True),
        TensorRule(LAYER + "feed_forward.w1.weight", (_INNER, "hidden_size"), linear=True),
        TensorRule(LAYER + "feed_forward.w3.weight", (_INNER, "hidden_size"), linear=True),
        TensorRule(LAYER + "feed_forward.w2.weight", ("hidden_size", _INNER), linear=True),
        TensorRule(LAYER + "attention.wqkv.bias", (_PACKED,), when="bias"),
        TensorRule(LAYER + "attention.wo.bias", ("hidden_size",), when="bias"),
    ),
    head="output",
    control_tokens=ControlTokens(
        92544,
        {
            92538: "<|plugin|>",
            92539: "<|interpreter|>",
            92540: "<|action_end|>",
            92541: "<|action_start|>",
            92542: "<|im_end|>",
            92543: "<|im_start|>",
        },
    ),
    chat_template="chat_internlm2.jinja",
)

INTERNLM3 = replace(
    LLAMA,
    name="internlm3",
    model_type="internlm3",
    architectures=("InternLM3ForCausalLM",),
    fields=(
        *FIELDS,
        FieldRule("qkv_bias", "bool", default=False),
        FieldRule("bias", "bool", default=False),
    ),
    aliases={"attention_bias": "qkv_bias", "mlp_bias": "bias"},
    tensors=(
        *OTHERS,
        *MATRICES,
        *(bias(name, "qkv_bias") for name in ("q_proj", "k_proj", "v_proj")),
        *(bias(name, "bias") for name in ("o_proj", "gate_proj", "up_proj", "down_proj")),
    ),
)
