"""ChatGLM2: two shared key heads, everything packed, and half of each head turned in adjacent pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.families.base import ConsistencyRule, ControlTokens, Family, FieldRule, Kind, TensorRule
from contract.faults import Problem

_LAYER = "transformer.encoder.layers.{layer}."
_HEADS, _KV_HEADS, _WIDTH = "num_attention_heads", "multi_query_group_num", "kv_channels"
_PACKED = f"{_HEADS}*{_WIDTH}+2*{_KV_HEADS}*{_WIDTH}"

_YAML_KEYS: dict[str, Kind] = {
    **dict.fromkeys(("type", "checkpoint_name_or_path", "model_type", "model_name"), "str"),
    **dict.fromkeys(("compute_dtype", "layernorm_compute_type", "param_init_type", "rotary_dtype"), "str"),
    **dict.fromkeys(("softmax_compute_type", "embedding_init_type", "extend_method"), "str"),
    **dict.fromkeys(("batch_size", "num_layers", "padded_vocab_size", "vocab_size", "hidden_size"), "int"),
    **dict.fromkeys(("ffn_hidden_size", _WIDTH, _HEADS, "seq_length", _KV_HEADS), "int"),
    **dict.fromkeys(("quantization_bit", "pad_token_id", "bos_token_id", "gmask_token_id"), "int"),
    **dict.fromkeys(("max_decode_length", "max_length", "max_new_tokens", "min_length", "top_k"), "int"),
    **dict.fromkeys(("block_size", "num_blocks", "num_beams", "offset"), "int"),
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "layernorm_epsilon", "top_p"), "float"),
    **dict.fromkeys(("repetition_penalty", "temperature", "rope_ratio"), "float"),
    **dict.fromkeys(("rmsnorm", "apply_residual_connection_post_layernorm", "post_layer_norm"), "bool"),
    **dict.fromkeys(("add_bias_linear", "add_qkv_bias", "bias_dropout_fusion"), "bool"),
    **dict.fromkeys(("multi_query_attention", "apply_query_key_layer_scaling", "use_past"), "bool"),
    **dict.fromkeys(("attention_softmax_in_fp32", "fp32_residual_connection", "prefix_projection"), "bool"),
    **dict.fromkeys(("do_sample", "use_flash_attention", "use_prompt_flash_attention", "is_dynamic"), "bool"),
    **dict.fromkeys(("use_incre_flash_attention", "use_llama_rope", "use_rearrange_rope"), "bool"),
    **dict.fromkeys(("qkv_concat", "mlp_concat", "original_rope", "tie_word_embeddings"), "bool"),
    "eos_token_id": "ids",
    **dict.fromkeys(("pre_seq_len", "auto_map", "parallel_config", "no_recompute_layers"), "any"),
}

_FIXED = {
    "add_bias_linear": (False, "has no biases but those of queries, keys and values"),
    "apply_residual_connection_post_layernorm": (False, "adds the states before the norm"),
    "multi_query_attention": (True, "shares keys and values"),
    "original_rope": (True, "turns adjacent pairs"),
    "post_layer_norm": (True, "has a norm before the head"),
    "rmsnorm": (True, "has RMSNorm"),
}
"""Config key -> the only value the network computes, and why."""


def _refuse(config: Mapping[str, Any]) -> list[Problem]:
    """What would be computed wrongly without a word."""
    problems = []
    for key, (wanted, why) in _FIXED.items():
        if config.get(key, wanted) is not wanted:
            message = f"is {config[key]!r}; the network {why}"
            problems.append(Problem(f"config.json  {key}", message, "take another model"))
    if config.get("pre_seq_len") not in (None, 0, "None"):
        message = "is set; prefixes of P-tuning are not supported"
        problems.append(Problem("config.json  pre_seq_len", message, "take the model without its prefix"))
    if config.get("quantization_bit") not in (None, 0):
        message = f"is {config['quantization_bit']!r}; that form of integer weights is not read"
        problems.append(
            Problem("config.json  quantization_bit", message, "take the floats and use --quantize")
        )
    return problems


CHATGLM = Family(
    name="chatglm",
    model_type="chatglm",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    yaml_types=("ChatGLM2Config",),
    fields=(
        FieldRule("padded_vocab_size", "int", "padded_vocab_size", required=True, minimum=1),
        FieldRule("hidden_size", "int", "hidden_size", required=True, minimum=1),
        FieldRule("num_layers", "int", "num_layers", required=True, minimum=1),
        FieldRule(_HEADS, "int", _HEADS, required=True, minimum=1),
        FieldRule(_KV_HEADS, "int", _KV_HEADS, required=True, minimum=1),
        FieldRule(_WIDTH, "int", _WIDTH, required=True, minimum=1),
        FieldRule("ffn_hidden_size", "int", "ffn_hidden_size", required=True, minimum=1),
        FieldRule("layernorm_epsilon", "float", "layernorm_epsilon", default=1e-5, minimum=0),
        FieldRule("seq_length", "int", "seq_length", required=True, minimum=2),
        FieldRule("rope_ratio", "float", "rope_ratio", default=1.0, minimum=0),
        FieldRule("add_qkv_bias", "bool", "add_qkv_bias", default=True),
        FieldRule("eos_token_id", "ids", "eos_token_id", default=2),
        FieldRule("pad_token_id", "int", "pad_token_id", default=0, minimum=0),
        FieldRule("tie_word_embeddings", "bool", "tie_word_embeddings", default=False),
    ),
    aliases={"vocab_size": "padded_vocab_size", "num_hidden_layers": "num_layers"},
    constants={
        "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False,
        "multi_query_attention": True,
        "original_rope": True,
        "post_layer_norm": True,
        "rmsnorm": True,
        "use_cache": True,
    },
    yaml_keys=_YAML_KEYS,
    tensors=(
        TensorRule("transformer.embedding.word_embeddings.weight", ("padded_vocab_size", "hidden_size")),
        TensorRule(_LAYER + "input_layernorm.weight", ("hidden_size",)),
        TensorRule(_LAYER + "self_attention.query_key_value.weight", (_PACKED, "hidden_size"), linear=True),
        TensorRule(_LAYER + "self_attention.query_key_value.bias", (_PACKED,), when="add_qkv_bias"),
        TensorRule(
            _LAYER + "self_attention.dense.weight", ("hidden_size", f"{_HEADS}*{_WIDTH}"), linear=True
        ),
        TensorRule(_LAYER + "post_attention_layernorm.weight", ("hidden_size",)),
        TensorRule(_LAYER + "mlp.dense_h_to_4h.weight", ("2*ffn_hidden_size", "hidden_size"), linear=True),
        TensorRule(_LAYER + "mlp.dense_4h_to_h.weight", ("hidden_size", "ffn_hidden_size"), linear=True),
        TensorRule("transformer.encoder.final_layernorm.weight", ("hidden_size",)),
        TensorRule("transformer.output_layer.weight", ("padded_vocab_size", "hidden_size"), linear=True),
    ),
    layers="num_layers",
    heads=_HEADS,
    kv_heads=_KV_HEADS,
    context="seq_length",
    network="decoder.py",
    yaml_template="mindformers_chatglm2.yaml",
    yaml_arch="ChatGLM2ForConditionalGeneration",
    head="transformer.output_layer",
    vocab="padded_vocab_size",
    # In raw text "sop" is a part of many words: here the token is spelled as mindformers does.
    control_tokens=ControlTokens(
        65024, {64789: "[MASK]", 64790: "[gMASK]", 64791: "[sMASK]", 64792: "<sop>", 64793: "<eop>"}
    ),
    prefix=("[gMASK]", "<sop>"),
    chat_template="chat_chatglm2.jinja",
    ignored_tensors=(r"transformer\.rotary_pos_emb\.inv_freq",),
    rules=(
        ConsistencyRule(_HEADS, "multiple_of", _KV_HEADS, "correct the number of key/value heads"),
        ConsistencyRule("pad_token_id", "below", "padded_vocab_size", "correct the id"),
    ),
    refuse=_refuse,
)
