"""TeleChat2: 3B, 7B, 35B and 115B dense, 39B-A12B with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.families.base import ConsistencyRule, Family, FieldRule, Kind, TensorRule
from contract.faults import Problem

_LAYER = "transformer.h.{layer}."
_EXPERT = _LAYER + "mlp.local_experts.{expert}."
_EXPERTS = "num_experts"

_YAML_KEYS: dict[str, Kind] = {
    **dict.fromkeys(("type", "auto_register", "extend_method", "checkpoint_name_or_path", "quant"), "str"),
    **dict.fromkeys(
        ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype"), "str"
    ),
    **dict.fromkeys(
        ("param_init_type", "embedding_init_type", "res_dtype", "model_type", "model_name"), "str"
    ),
    **dict.fromkeys(
        ("batch_size", "seq_length", "hidden_size", "num_layers", "num_heads", "n_kv_heads"), "int"
    ),
    **dict.fromkeys(("intermediate_size", "vocab_size", "multiple_of", "max_position_embedding"), "int"),
    **dict.fromkeys(("pretrain_seqlen", "bos_token_id", "pad_token_id", "ignore_token_id", "offset"), "int"),
    **dict.fromkeys(("block_size", "num_blocks", "max_decode_length", "max_length", "top_k"), "int"),
    **dict.fromkeys(("fine_grain_interleave", "pp_interleave_num", "min_length", "max_new_tokens"), "int"),
    **dict.fromkeys(
        ("rms_norm_eps", "theta", "scaling_factor", "repetition_penalty", "top_p", "sigma"), "float"
    ),
    **dict.fromkeys(("mean", "ffn_dim_multiplier", "temperature", "embed_dropout_prob"), "float"),
    **dict.fromkeys(("hidden_dropout_prob", "attention_dropout_prob"), "float"),
    **dict.fromkeys(
        ("use_past", "is_dynamic", "use_flash_attention", "out_proj_has_bias", "qkv_concat"), "bool"
    ),
    **dict.fromkeys(("use_past_shard", "qkv_has_bias", "wo_has_bias", "do_sample", "use_rope_slice"), "bool"),
    **dict.fromkeys(("use_attn_mask_compression", "parallel_optimizer", "use_ring_attention"), "bool"),
    **dict.fromkeys(("tie_word_embeddings", "use_paged_attention"), "bool"),
    "eos_token_id": "ids",
    **dict.fromkeys(("auto_map", "parallel_config", "quantization_config"), "any"),
}

_MOE_KEYS: dict[str, Kind] = {
    **dict.fromkeys(
        ("expert_num", "num_experts_chosen", "moe_intermediate_size", "shared_expert_num"), "int"
    ),
    **dict.fromkeys(("max_router_load", "group_wise_a2a_size", "aux_loss_factors_size"), "int"),
    **dict.fromkeys(("capacity_factor", "topk_bias_update_rate", "aux_loss_factor"), "float"),
    **dict.fromkeys(("routing_policy", "router_dense_type", "balance_via_topk_bias_type"), "str"),
    **dict.fromkeys(("enable_sdrop", "use_fused_ops_topkrouter", "balance_via_topk_bias"), "bool"),
    **dict.fromkeys(("norm_topk_prob", "enable_deredundency", "use_gmm", "use_fused_ops_permute"), "bool"),
}
"""``moe_config``, which stands beside ``model`` in the yaml."""


def _dense(matrix: str, shape: tuple[str, ...], *, linear: bool = True) -> TensorRule:
    return TensorRule(_LAYER + f"mlp.{matrix}", shape, unless=_EXPERTS, linear=linear)


def _expert(matrix: str, shape: tuple[str, ...], *, linear: bool = True) -> TensorRule:
    return TensorRule(_EXPERT + matrix, shape, when=_EXPERTS, linear=linear)


def _refuse(config: Mapping[str, Any]) -> list[Problem]:
    """What would be computed wrongly without a word."""
    problems = []
    if config.get("embed_layernorm"):
        message = "is true; the network has no norm behind the embedding"
        problems.append(Problem("config.json  embed_layernorm", message, "take another model"))
    if config.get("apply_residual_connection_post_layernorm"):
        message = "is true; the network adds the states before the norm"
        where = "config.json  apply_residual_connection_post_layernorm"
        problems.append(Problem(where, message, "take another model"))
    if config.get("shared_expert_num"):
        message = "is not 0; the network has no shared experts"
        problems.append(Problem("config.json  shared_expert_num", message, "take another model"))
    return problems


TELECHAT = Family(
    name="telechat",
    model_type="telechat",
    architectures=("TelechatForCausalLM", "TeleChatForCausalLM", "TeleChat2ForCausalLM"),
    yaml_types=("TelechatConfig", "Telechat2Config"),
    fields=(
        FieldRule("vocab_size", "int", "vocab_size", required=True, minimum=1),
        FieldRule("hidden_size", "int", "hidden_size", required=True, minimum=1),
        FieldRule("n_layer", "int", "num_layers", required=True, minimum=1),
        FieldRule("n_head", "int", "num_heads", required=True, minimum=1),
        FieldRule("num_key_value_heads", "int", "n_kv_heads", same_as=("n_head",), minimum=1),
        FieldRule("ffn_hidden_size", "int", "intermediate_size", required=True, minimum=1),
        FieldRule("layer_norm_epsilon", "float", "rms_norm_eps", default=1e-5, minimum=0),
        FieldRule("seq_length", "int", "seq_length", required=True, minimum=2),
        FieldRule(
            "training_seqlen", "int", "pretrain_seqlen", same_as=("base_seqlen", "seq_length"), minimum=1
        ),
        FieldRule(
            "base_seqlen",
            "int",
            "max_position_embedding",
            same_as=("training_seqlen", "seq_length"),
            minimum=1,
        ),
        FieldRule("extend_method", "str", "extend_method", default="DYNAMIC_NTK"),
        FieldRule("rope_theta", "float", "theta", default=10000.0, minimum=1),
        FieldRule("bos_token_id", "int", "bos_token_id", default=1, minimum=0),
        FieldRule("eos_token_id", "ids", "eos_token_id", default=2),
        FieldRule("pad_token_id", "int", "pad_token_id", default=3, minimum=0),
        FieldRule("unk_token_id", "int", default=0, minimum=0),
        FieldRule("tie_word_embeddings", "bool", "tie_word_embeddings", default=False),
        FieldRule(_EXPERTS, "int", "moe_config.expert_num", minimum=1),
        FieldRule("num_experts_per_tok", "int", "moe_config.num_experts_chosen", minimum=1),
        FieldRule("norm_topk_prob", "bool", "moe_config.norm_topk_prob"),
        FieldRule("shared_expert_num", "int", "moe_config.shared_expert_num"),
    ),
    aliases={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "ffn_hidden_size",
        "rms_norm_eps": "layer_norm_epsilon",
        # The field names of the published 39B-A12B are not known: these are its relatives'.
        "num_local_experts": _EXPERTS,
        "n_routed_experts": _EXPERTS,
        "expert_num": _EXPERTS,
        "num_experts_chosen": "num_experts_per_tok",
        "moe_topk": "num_experts_per_tok",
        "n_shared_experts": "shared_expert_num",
    },
    constants={
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "embed_layernorm": False,
        "hidden_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    },
    yaml_keys=_YAML_KEYS,
    tensors=(
        TensorRule("transformer.word_embeddings.weight", ("vocab_size", "hidden_size")),
        TensorRule(_LAYER + "input_layernorm.weight", ("hidden_size",)),
        TensorRule(_LAYER + "self_attention.query.weight", ("n_head*head_dim", "hidden_size"), linear=True),
        TensorRule(
            _LAYER + "self_attention.key_value.weight",
            ("2*num_key_value_heads*head_dim", "hidden_size"),
            linear=True,
        ),
        TensorRule(_LAYER + "self_attention.dense.weight", ("hidden_size", "n_head*head_dim"), linear=True),
        TensorRule(_LAYER + "self_attention.dense.bias", ("hidden_size",)),
        TensorRule(_LAYER + "post_attention_layernorm.weight", ("hidden_size",)),
        _dense("gate_proj.weight", ("ffn_hidden_size", "hidden_size")),
        _dense("up_proj.weight", ("ffn_hidden_size", "hidden_size")),
        _dense("down_proj.weight", ("hidden_size", "ffn_hidden_size")),
        _dense("down_proj.bias", ("hidden_size",), linear=False),
        TensorRule(_LAYER + "mlp.router.weight", (_EXPERTS, "hidden_size"), when=_EXPERTS),
        _expert("gate_proj.weight", ("ffn_hidden_size", "hidden_size")),
        _expert("up_proj.weight", ("ffn_hidden_size", "hidden_size")),
        _expert("down_proj.weight", ("hidden_size", "ffn_hidden_size")),
        _expert("down_proj.bias", ("hidden_size",), linear=False),
        TensorRule("transformer.ln_f.weight", ("hidden_size",)),
        TensorRule(
            "lm_head.weight", ("vocab_size", "hidden_size"), unless="tie_word_embeddings", linear=True
        ),
    ),
    layers="n_layer",
    heads="n_head",
    kv_heads="num_key_value_heads",
    context="seq_length",
    network="telechat2.py",
    yaml_template="mindformers_telechat.yaml",
    yaml_arch="TelechatForCausalLM",
    yaml_blocks={"moe_config": _MOE_KEYS},
    chat_template="chat_telechat2.jinja",
    other_model_types=("telechat2",),
    ignored_tensors=(r".*\.rotary_emb\.inv_freq",),
    rules=(
        ConsistencyRule("hidden_size", "multiple_of", "n_head", "correct hidden_size or the number of heads"),
        ConsistencyRule(
            "n_head", "multiple_of", "num_key_value_heads", "correct the number of key/value heads"
        ),
        ConsistencyRule(
            "seq_length",
            "at_most",
            "base_seqlen",
            'set extend_method: "DYNAMIC_NTK" or lower seq_length',
            unless="extend_method",
        ),
        ConsistencyRule("num_experts_per_tok", "at_most", _EXPERTS, "correct the number of experts"),
        ConsistencyRule("bos_token_id", "below", "vocab_size", "correct the id"),
        ConsistencyRule("pad_token_id", "below", "vocab_size", "correct the id"),
    ),
    refuse=_refuse,
)
