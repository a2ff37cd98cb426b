"""Small random models of every architecture, under their publishers' names."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.families import family_of_config

Weights = dict[str, NDArray[np.float32]]

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 211,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_TELECHAT: Mapping[str, Any] = {
    "architectures": ["TelechatForCausalLM"],
    "model_type": "telechat",
    "vocab_size": 211,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 4,
    "num_key_value_heads": 4,
    "ffn_hidden_size": 96,
    "layer_norm_epsilon": 1e-5,
    "seq_length": 256,
    "training_seqlen": 256,
    "base_seqlen": 256,
    "extend_method": "DYNAMIC_NTK",
}
_INTERNLM2: Mapping[str, Any] = {
    **_LLAMA,
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "bias": False,
}
_BAICHUAN: Mapping[str, Any] = {
    **{
        key: value
        for key, value in _LLAMA.items()
        if key not in ("max_position_embeddings", "num_key_value_heads", "rope_theta")
    },
    "architectures": ["BaichuanForCausalLM"],
    "model_type": "baichuan",
    "rms_norm_eps": 1e-6,
    "model_max_length": 256,
}
_QWEN2: Mapping[str, Any] = {
    **_LLAMA,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}
_MOE: Mapping[str, Any] = {
    **_TELECHAT,
    "ffn_hidden_size": 48,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
}


@dataclass(frozen=True)
class Case:
    """A model and the prompts whose logits are compared."""

    config: Mapping[str, Any]
    lengths: tuple[int, ...] = (77,)
    without: str = ""
    """Ending of names whose tensors are zero, because the native class lacks them."""
    context: int = 256


def _long(config: Mapping[str, Any], **sizes: Any) -> Mapping[str, Any]:
    """One head of 16 dimensions: attention alone costs anything at this length."""
    return {**config, "hidden_size": 16, "vocab_size": 97, **sizes}


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "llama2": Case({**_LLAMA, "num_key_value_heads": 4}),
        "llama3": Case({**_LLAMA, "rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE}),
        "llama, linear": Case({**_LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        "llama, yarn": Case({**_LLAMA, "rope_scaling": _YARN}),
        "mistral": Case(
            {**_LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 20}
        ),
        "qwen1.5": Case({**_QWEN2, "num_key_value_heads": 4}),
        "qwen2.5, tied": Case({**_QWEN2, "tie_word_embeddings": True}),
        "qwen2, windows": Case(
            {**_QWEN2, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
        ),
        "qwen3": Case(
            {**_QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
        ),
        "internlm2.5": Case(_INTERNLM2),
        "internlm2.5, past its length": Case({**_INTERNLM2, "max_position_embeddings": 48}, (48, 49, 77)),
        "internlm2.5, past 32768": Case(
            _long(
                _INTERNLM2,
                num_attention_heads=1,
                num_key_value_heads=1,
                intermediate_size=16,
                max_position_embeddings=32768,
            ),
            (32768, 32769, 34000),
            context=65536,
        ),
        "internlm3": Case(
            {
                **_LLAMA,
                "architectures": ["InternLM3ForCausalLM"],
                "model_type": "internlm3",
                "head_dim": 32,
                "qkv_bias": True,
                "bias": True,
            }
        ),
        "fm9g": Case(
            {
                **_LLAMA,
                "architectures": ["FM9GForCausalLM"],
                "model_type": "fm9g",
                "num_key_value_heads": 1,
                "rope_theta": 1000000.0,
                "tie_word_embeddings": True,
                "scale_emb": 12,
                "scale_depth": 1.4,
                "dim_model_base": 16,
            }
        ),
        "chatglm2": Case(
            {
                "architectures": ["ChatGLMModel"],
                "model_type": "chatglm",
                "padded_vocab_size": 211,
                "hidden_size": 64,
                "num_layers": 2,
                "num_attention_heads": 4,
                "multi_query_group_num": 2,
                "kv_channels": 16,
                "ffn_hidden_size": 96,
                "layernorm_epsilon": 1e-5,
                "seq_length": 256,
                "add_qkv_bias": True,
            }
        ),
        "baichuan2": Case(_BAICHUAN),
        "baichuan2, six heads": Case({**_BAICHUAN, "hidden_size": 96, "num_attention_heads": 6}),
        "telechat2": Case(_TELECHAT),
        "telechat2, shared heads": Case({**_TELECHAT, "num_key_value_heads": 2}),
        "telechat2, up to 16K": Case(
            _long(
                _TELECHAT,
                n_head=1,
                num_key_value_heads=1,
                ffn_hidden_size=16,
                seq_length=16384,
                training_seqlen=8192,
                base_seqlen=8192,
            ),
            (8191, 8192, 8193, 12000, 16384),
            context=16384,
        ),
        "telechat2, experts": Case(_MOE, without="dense.bias down_proj.bias"),
    }
)


def random_weights(config: Mapping[str, Any], without: str = "") -> Weights:
    """Weights large enough that everything matters; the same for a name and shape in every run."""
    weights: Weights = {}
    family = family_of_config(config, "the test")
    zero = tuple(without.split())
    for name, shape in family.expected_tensors(config):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(shape, dtype=np.float32)
        if zero and name.endswith(zero):
            values *= np.float32(0)
        elif name.endswith(".bias"):
            values *= np.float32(0.3)
        elif len(shape) == 1:
            values = 1 + values * np.float32(0.15)
        elif "embed" in name:
            values *= np.float32(0.6)
        else:
            values *= np.float32(1.2 / shape[1] ** 0.5)
        weights[name] = values
    return weights


def prompt(vocab: int, length: int) -> list[int]:
    """Random tokens."""
    return [int(token) for token in np.random.default_rng(length).integers(0, vocab, length)]
