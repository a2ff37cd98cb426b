"""FM-9G (九格): LLaMA's decoder with scaled embedding, residual branches and logits."""

from __future__ import annotations

from dataclasses import replace

from builder.families.base import ControlTokens, FieldRule, Kind
from builder.families.llama import FIELDS, LLAMA, MATRICES, OTHERS, YAML_KEYS, bias

_SCALES: dict[str, Kind] = {
    "scale": "bool",
    "scale_emb": "float",
    "scale_depth": "float",
    "dim_model_base": "int",
}

FM9G = replace(
    LLAMA,
    name="fm9g",
    model_type="fm9g",
    architectures=("FM9GForCausalLM",),
    # mindformers has no FM-9G: under a name of its own nobody takes it for LLaMA, which has no scales.
    yaml_types=("FM9GConfig",),
    yaml_arch="FM9GForCausalLM",
    yaml_keys={**YAML_KEYS, **_SCALES},
    fields=(
        *FIELDS,
        FieldRule("qkv_bias", "bool", "qkv_has_bias", default=False),
        FieldRule("scale", "bool", "scale", default=True),
        FieldRule("scale_emb", "float", "scale_emb", minimum=0),
        FieldRule("scale_depth", "float", "scale_depth"),
        FieldRule("dim_model_base", "int", "dim_model_base", minimum=1),
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
