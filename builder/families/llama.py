"""LLaMA 2 and 3, and Qwen 1.5 to 2.5 (dense): the same decoder under the same tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from builder.families.base import ConsistencyRule, Family, FieldRule, Kind, TensorRule
from contract.faults import Problem

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."
_QUERY, _KEY_VALUE = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
_UNSCALED = ("default", "dynamic")
"""Rotary forms that change nothing up to the trained length, where MindPort's limit is."""

_YAML_KEYS: dict[str, Kind] = {
    **dict.fromkeys(("type", "checkpoint_name_or_path", "extend_method", "model_type", "model_name"), "str"),
    **dict.fromkeys(
        ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype"), "str"
    ),
    **dict.fromkeys(("param_init_type", "embedding_init_type", "res_dtype"), "str"),
    **dict.fromkeys(
        ("batch_size", "seq_length", "hidden_size", "num_layers", "num_heads", "n_kv_heads"), "int"
    ),
    **dict.fromkeys(("intermediate_size", "vocab_size", "multiple_of", "max_position_embedding"), "int"),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "ignore_token_id", "offset", "kv_channels"), "int"),
    **dict.fromkeys(("block_size", "num_blocks", "max_decode_length", "max_length", "top_k"), "int"),
    **dict.fromkeys(("rms_norm_eps", "theta", "scaling_factor", "repetition_penalty", "top_p"), "float"),
    **dict.fromkeys(("ffn_dim_multiplier", "temperature", "emb_dropout_prob"), "float"),
    **dict.fromkeys(("rotary_pct", "rotary_emb_base"), "float"),
    **dict.fromkeys(("use_past", "is_dynamic", "use_flash_attention", "qkv_concat", "qkv_has_bias"), "bool"),
    **dict.fromkeys(("do_sample", "use_rope_slice", "tie_word_embeddings", "use_paged_attention"), "bool"),
    "eos_token_id": "ids",
    **dict.fromkeys(("auto_map", "parallel_config", "quantization_config"), "any"),
}

_FIELDS = (
    FieldRule("vocab_size", "int", "vocab_size", required=True, minimum=1),
    FieldRule("hidden_size", "int", "hidden_size", required=True, minimum=1),
    FieldRule("num_hidden_layers", "int", "num_layers", required=True, minimum=1),
    FieldRule("num_attention_heads", "int", "num_heads", required=True, minimum=1),
    FieldRule("num_key_value_heads", "int", "n_kv_heads", same_as=("num_attention_heads",), minimum=1),
    FieldRule("head_dim", "int", minimum=1),
    FieldRule("intermediate_size", "int", "intermediate_size", required=True, minimum=1),
    FieldRule("rms_norm_eps", "float", "rms_norm_eps", default=1e-6, minimum=0),
    FieldRule("max_position_embeddings", "int", "seq_length", required=True, minimum=2),
    FieldRule("rope_theta", "float", "theta", default=10000.0, minimum=1),
    FieldRule("bos_token_id", "int", "bos_token_id", minimum=0),
    FieldRule("eos_token_id", "ids", "eos_token_id"),
    FieldRule("pad_token_id", "int", "pad_token_id"),
    FieldRule("tie_word_embeddings", "bool", "tie_word_embeddings", default=False),
)

_MATRICES = (
    TensorRule(_ATTENTION + "q_proj.weight", (_QUERY, "hidden_size"), linear=True),
    TensorRule(_ATTENTION + "k_proj.weight", (_KEY_VALUE, "hidden_size"), linear=True),
    TensorRule(_ATTENTION + "v_proj.weight", (_KEY_VALUE, "hidden_size"), linear=True),
    TensorRule(_ATTENTION + "o_proj.weight", ("hidden_size", _QUERY), linear=True),
    TensorRule(_MLP + "gate_proj.weight", ("intermediate_size", "hidden_size"), linear=True),
    TensorRule(_MLP + "up_proj.weight", ("intermediate_size", "hidden_size"), linear=True),
    TensorRule(_MLP + "down_proj.weight", ("hidden_size", "intermediate_size"), linear=True),
)
_OTHERS = (
    TensorRule("model.embed_tokens.weight", ("vocab_size", "hidden_size")),
    TensorRule(_LAYER + "input_layernorm.weight", ("hidden_size",)),
    TensorRule(_LAYER + "post_attention_layernorm.weight", ("hidden_size",)),
    TensorRule("model.norm.weight", ("hidden_size",)),
    TensorRule("lm_head.weight", ("vocab_size", "hidden_size"), unless="tie_word_embeddings", linear=True),
)


def _bias(matrix: str, when: str | None) -> TensorRule:
    """The bias of the matrix with this ending."""
    rule = next(rule for rule in _MATRICES if rule.pattern.endswith(f"{matrix}.weight"))
    return TensorRule(rule.pattern.removesuffix("weight") + "bias", rule.shape[:1], when=when)


def _refuse(config: Mapping[str, Any]) -> list[Problem]:
    """What would be computed wrongly without a word."""
    problems = []
    scaling = config.get("rope_scaling")
    kind = (scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, Mapping) else scaling
    if kind is not None and kind not in _UNSCALED:
        message = f"is {kind!r}; the network turns positions without scaling only"
        remedy = "take a model without rope_scaling, or wait for a MindPort that supports it"
        problems.append(Problem("config.json  rope_scaling", message, remedy))
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        problems.append(
            Problem(
                "config.json  hidden_act", f"is {activation!r}; the network has silu", "take another model"
            )
        )
    if config.get("partial_rotary_factor", 1) != 1:
        message = "is not 1; the network turns whole heads"
        problems.append(Problem("config.json  partial_rotary_factor", message, "take another model"))
    return problems


def _refuse_qwen2(config: Mapping[str, Any]) -> list[Problem]:
    problems = _refuse(config)
    layers, full = config.get("num_hidden_layers"), config.get("max_window_layers", 28)
    windowed = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    named = config.get("layer_types")
    if isinstance(named, list):
        used = any(kind != "full_attention" for kind in named)
    else:
        used = windowed and not (isinstance(layers, int) and isinstance(full, int) and full >= layers)
    if used:
        message = "is used by some layers; the network attends to all positions in every layer"
        remedy = "take a model without sliding windows"
        problems.append(Problem("config.json  sliding_window", message, remedy))
    return problems


LLAMA = Family(
    name="llama",
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    yaml_types=("LlamaConfig",),
    fields=(
        *_FIELDS,
        FieldRule("attention_bias", "bool", default=False),
        FieldRule("mlp_bias", "bool", default=False),
    ),
    aliases={},
    constants={"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True},
    yaml_keys=_YAML_KEYS,
    tensors=(
        *_OTHERS,
        *_MATRICES,
        *(_bias(name, "attention_bias") for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(_bias(name, "mlp_bias") for name in ("gate_proj", "up_proj", "down_proj")),
    ),
    layers="num_hidden_layers",
    heads="num_attention_heads",
    kv_heads="num_key_value_heads",
    context="max_position_embeddings",
    network="llama.py",
    yaml_template="mindformers_llama.yaml",
    adds_bos=True,
    ignored_tensors=(r".*\.rotary_emb\.inv_freq",),
    rules=(
        ConsistencyRule(
            "hidden_size",
            "multiple_of",
            "num_attention_heads",
            "correct hidden_size or the number of heads",
            unless="head_dim",
        ),
        ConsistencyRule(
            "num_attention_heads",
            "multiple_of",
            "num_key_value_heads",
            "correct the number of key/value heads",
        ),
        ConsistencyRule("bos_token_id", "below", "vocab_size", "correct the id"),
        ConsistencyRule("pad_token_id", "below", "vocab_size", "correct the id"),
    ),
    refuse=_refuse,
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    fields=_FIELDS,
    tensors=(*_OTHERS, *_MATRICES, *(_bias(name, None) for name in ("q_proj", "k_proj", "v_proj"))),
    yaml_values={"qkv_has_bias": True},
    adds_bos=False,
    refuse=_refuse_qwen2,
)
