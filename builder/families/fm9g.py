"""FM-9G (九格): LLaMA's decoder with scaled embedding, residual branches and logits."""

from __future__ import annotations

from dataclasses import replace

from builder.families.base import ControlTokens, FieldRule
from builder.families.llama import FIELDS, LLAMA, MATRICES, OTHERS, bias

FM9G = replace(
    LLAMA,
    name="fm9g",
    model_type="fm9g",
    architectures=("FM9GForCausalLM",),
    fields=(
        *FIELDS,
        FieldRule("qkv_bias", "bool", "qkv_has_bias", default=False),
        FieldRule("scale", "bool", default=True),
        FieldRule("scale_emb", "float", minimum=0),
        FieldRule("scale_depth", "float"),
        FieldRule("dim_model_base", "int", minimum=1),
    ),
    aliases={  # as its training code says
        "base": "rope_theta",
        "dim_ff": "intermediate_size",
        "dim_head": "head_dim",
        "dim_model": "hidden_size",
        "eps": "rms_norm_eps",
        "max_length": "max_position_embeddings",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "num_layers": "num_hidden_layers",
        "tie_lm_head": "tie_word_embeddings",
    },
    tensors=(*OTHERS, *MATRICES, *(bias(name, "qkv_bias") for name in ("q_proj", "k_proj", "v_proj"))),
    control_tokens=ControlTokens(
        73448,
        {
            73440: "<|im_end|>",
            73441: "<|im_start|>",
            73442: "<|tool_call|>",
            73443: "<|execute_start|>",
            73444: "<|execute_end|>",
            73445: "<|fim_prefix|>",
            73446: "<|fim_middle|>",
            73447: "<|fim_suffix|>",
        },
    ),
    chat_template="chat_fm9g.jinja",
)
