"""LLaMA 2 and 3, and Mistral: the decoder and the tensor names that most other families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from builder.families.base import ConsistencyRule, Family, FieldRule, Kind, TensorRule
from builder.families.rope import longest_context, rope_problems
from contract.faults import Problem

LAYER = "model.layers.{layer}."
_ATTENTION = LAYER + "self_attn."
_MLP = LAYER + "mlp."
QUERY, KEY_VALUE = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
ROTARY_BUFFERS = (r".*\.rotary_emb\.inv_freq",)

YAML_KEYS: dict[str, Kind] = {
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

FIELDS = (
    FieldRule("vocab_size", "int", "vocab_size", required=True, minimum=1),
    FieldRule("hidden_size", "int", "hidden_size", required=True, minimum=1),
    FieldRule("num_hidden_layers", "int", "num_layers", required=True, minimum=1),
    FieldRule("num_attention_heads", "int", "num_heads", required=True, minimum=1),
    FieldRule("num_key_value_heads", "int", "n_kv_heads", same_as=("num_attention_heads",), minimum=1),
    FieldRule("head_dim", "int", minimum=1),
    FieldRule("intermediate_size", "int", "intermediate_size", required=True, minimum=1),
    FieldRule("rms_norm_eps", "float", "rms_norm_eps", default=1e-6, minimum=0),
    FieldRule("seq_length", "int", "seq_length", minimum=2),
    FieldRule(
        "max_position_embeddings",
        "int",
        "max_position_embedding",
        required=True,
        same_as=("seq_length",),
        minimum=2,
    ),
    FieldRule("rope_theta", "float", "theta", default=10000.0, minimum=1),
    FieldRule("rope_scaling", "any"),
    FieldRule("bos_token_id", "int", "bos_token_id", minimum=0),
    FieldRule("eos_token_id", "ids", "eos_token_id"),
    FieldRule("pad_token_id", "int", "pad_token_id"),
    FieldRule("tie_word_embeddings", "bool", "tie_word_embeddings", default=False),
)

MATRICES = (
    TensorRule(_ATTENTION + "q_proj.weight", (QUERY, "hidden_size"), linear=True),
    TensorRule(_ATTENTION + "k_proj.weight", (KEY_VALUE, "hidden_size"), linear=True),
    TensorRule(_ATTENTION + "v_proj.weight", (KEY_VALUE, "hidden_size"), linear=True),
    TensorRule(_ATTENTION + "o_proj.weight", ("hidden_size", QUERY), linear=True),
    TensorRule(_MLP + "gate_proj.weight", ("intermediate_size", "hidden_size"), linear=True),
    TensorRule(_MLP + "up_proj.weight", ("intermediate_size", "hidden_size"), linear=True),
    TensorRule(_MLP + "down_proj.weight", ("hidden_size", "intermediate_size"), linear=True),
)
OTHERS = (
    TensorRule("model.embed_tokens.weight", ("vocab_size", "hidden_size")),
    TensorRule(LAYER + "input_layernorm.weight", ("hidden_size",)),
    TensorRule(LAYER + "post_attention_layernorm.weight", ("hidden_size",)),
    TensorRule("model.norm.weight", ("hidden_size",)),
    TensorRule("lm_head.weight", ("vocab_size", "hidden_size"), unless="tie_word_embeddings", linear=True),
)
RULES = (
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
)


def bias(matrix: str, when: str | None = None) -> TensorRule:
    """The bias of the matrix with this ending, where the config key ``when`` is true."""
    rule = next(rule for rule in MATRICES if rule.pattern.endswith(f"{matrix}.weight"))
    return TensorRule(rule.pattern.removesuffix("weight") + "bias", rule.shape[:1], when=when)


def decoder_problems(config: Mapping[str, Any]) -> list[Problem]:
    """What would be computed wrongly without a word."""
    problems = rope_problems(config)
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        message = f"is {activation!r}; the network has silu"
        problems.append(Problem("config.json  hidden_act", message, "take another model"))
    if config.get("partial_rotary_factor", 1) != 1:
        message = "is not 1; the network turns whole heads"
        problems.append(Problem("config.json  partial_rotary_factor", message, "take another model"))
    problems.extend(_window_problems(config))
    return problems


def _window_problems(config: Mapping[str, Any]) -> list[Problem]:
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return []
    unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if unknown:
        message = f"has {', '.join(unknown)}; the network knows full_attention and sliding_attention"
        return [Problem("config.json  layer_types", message, "take another model")]
    if len(kinds) != config.get("num_hidden_layers"):
        message = f"names {len(kinds)} layers, there are {config.get('num_hidden_layers')}"
        return [Problem("config.json  layer_types", message, "correct it or remove it")]
    if "sliding_attention" in kinds and not config.get("sliding_window"):
        message = "is not set, and layer_types has sliding_attention"
        return [Problem("config.json  sliding_window", message, "copy it from the publisher's config.json")]
    return []


LLAMA = Family(
    name="llama",
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    yaml_types=("LlamaConfig",),
    fields=(
        *FIELDS,
        FieldRule("attention_bias", "bool", default=False),
        FieldRule("mlp_bias", "bool", default=False),
    ),
    aliases={},
    constants={"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True},
    yaml_keys=YAML_KEYS,
    tensors=(
        *OTHERS,
        *MATRICES,
        *(bias(name, "attention_bias") for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(bias(name, "mlp_bias") for name in ("gate_proj", "up_proj", "down_proj")),
    ),
    layers="num_hidden_layers",
    heads="num_attention_heads",
    kv_heads="num_key_value_heads",
    context="max_position_embeddings",
    network="decoder.py",
    yaml_template="mindformers_llama.yaml",
    yaml_arch="LlamaForCausalLM",
    adds_bos=True,
    ignored_tensors=ROTARY_BUFFERS,
    rules=RULES,
    refuse=decoder_problems,
    longest=longest_context,
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    fields=FIELDS,
    tensors=(*OTHERS, *MATRICES),
)
