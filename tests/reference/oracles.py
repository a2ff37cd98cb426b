"""Logits of every architecture by the native classes of ``transformers``, which need torch.

Where ``transformers`` has no class of a family, the model is said in the words of one that it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from tests.reference.architectures import Case, Weights, prompt, random_weights

State = dict[str, Tensor]
_OLDER = int(transformers.__version__.partition(".")[0]) < 5
"""Which keeps every expert of Mixtral apart."""
ROWS = 16
"""Of each prompt the last ones are compared."""


def oracle_logits(case: Case, length: int) -> NDArray[np.float32]:
    """The last rows' logits of the case's prompt of this length."""
    config = case.config
    state = {name: torch.from_numpy(values) for name, values in _weights(case).items()}
    model, options = _ORACLES[config["model_type"]](config, state, length)
    model.eval()
    ids = torch.tensor([prompt(int(config.get("padded_vocab_size") or config["vocab_size"]), length)])
    with torch.no_grad():
        logits = model(ids, use_cache=False, logits_to_keep=ROWS, **options).logits
    found: NDArray[np.float32] = logits[0].numpy()
    return found


def _weights(case: Case) -> Weights:
    return random_weights(case.config, case.without)


def _build(name: str, config: Mapping[str, Any], state: State, length: int = 0) -> Any:
    """A native model with exactly these weights."""
    model_class = getattr(transformers, f"{name}ForCausalLM")
    # The plain implementation holds the whole matrix of scores: too large for long prompts.
    attention = "sdpa" if length > 4096 else "eager"
    native = model_class.config_class(**config, attn_implementation=attention)
    model = model_class(native)
    missing, surplus = model.load_state_dict(state, strict=False)
    assert not surplus, surplus
    assert set(missing) == ({"lm_head.weight"} if native.tie_word_embeddings else set()), missing
    return model


def _same(name: str) -> Callable[[Mapping[str, Any], State, int], tuple[Any, dict[str, Any]]]:
    def oracle(config: Mapping[str, Any], state: State, length: int) -> tuple[Any, dict[str, Any]]:
        plain = {key: value for key, value in config.items() if key != "architectures"}
        return _build(name, plain, state, length), {}

    return oracle


def _renamed(state: State, names: Mapping[str, str]) -> State:
    renamed = {}
    for name, values in state.items():
        new = name
        for old, own in names.items():
            new = new.replace(old, own)
        renamed[new] = values
    return renamed


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "tie_word_embeddings",
    "head_dim",
)


def _llama(config: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """The sizes of a config with LLaMA's names."""
    return {**{key: config[key] for key in _SIZES if key in config}, **own}


def _internlm2(config: Mapping[str, Any], state: State, length: int) -> tuple[Any, dict[str, Any]]:
    names = {
        "tok_embeddings": "embed_tokens",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention.wo": "self_attn.o_proj",
    }
    state = _renamed(state, names)
    state["lm_head.weight"] = state.pop("output.weight")
    kv, heads = config["num_key_value_heads"], config["num_attention_heads"]
    width = config["hidden_size"] // heads
    for layer in range(config["num_hidden_layers"]):
        packed = state.pop(f"model.layers.{layer}.attention.wqkv.weight")
        groups = packed.reshape(kv, heads // kv + 2, width, -1)
        parts = {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}
        for role, rows in parts.items():
            state[f"model.layers.{layer}.self_attn.{role}_proj.weight"] = rows.reshape(-1, packed.shape[1])
    return _build("Llama", _llama(config), state, length), {}


def _internlm3(config: Mapping[str, Any], state: State, length: int) -> tuple[Any, dict[str, Any]]:
    """LLaMA with all biases, as ``transformers`` itself runs it."""
    sizes = _llama(config, attention_bias=config["qkv_bias"], mlp_bias=config["bias"])
    return _build("Llama", sizes, state, length), {}


def _fm9g(config: Mapping[str, Any], state: State, length: int) -> tuple[Any, dict[str, Any]]:
    width = config["hidden_size"] // config["num_attention_heads"]
    scales = {
        "embedding_multiplier": config["scale_emb"],
        "residual_multiplier": config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
        "logits_scaling": config["hidden_size"] / config["dim_model_base"],
        "attention_multiplier": 1 / math.sqrt(width),
    }
    return _build("Granite", _llama(config, **scales), state, length), {}


def _chatglm(config: Mapping[str, Any], state: State, length: int) -> tuple[Any, dict[str, Any]]:
    names = {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.layers": "model.layers",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.gate_up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    state = _renamed(state, names)
    heads, kv, width = (
        config[key] for key in ("num_attention_heads", "multi_query_group_num", "kv_channels")
    )
    for name in [name for name in state if "query_key_value" in name]:
        prefix, _, kind = name.rpartition("self_attention.query_key_value.")
        parts = state.pop(name).split([heads * width, kv * width, kv * width])
        for role, rows in zip("qkv", parts, strict=True):
            state[f"{prefix}self_attn.{role}_proj.{kind}"] = rows
    sizes = {
        "vocab_size": config["padded_vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": width,
        "intermediate_size": config["ffn_hidden_size"],
        "rms_norm_eps": config["layernorm_epsilon"],
        "max_position_embeddings": config["seq_length"],
        "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
        "pad_token_id": None,
    }
    return _build("Glm", sizes, state, length), {}


def _baichuan(config: Mapping[str, Any], state: State, length: int) -> tuple[Any, dict[str, Any]]:
    """LLaMA at position 0 throughout, so that nothing turns; the slopes come with the mask."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    for name in [name for name in state if "W_pack" in name]:
        prefix, rows = name.removesuffix("W_pack.weight"), state.pop(name)
        for role, part in zip("qkv", rows.split(hidden), strict=True):
            state[f"{prefix}{role}_proj.weight"] = part
    state["lm_head.weight"] = torch.nn.functional.normalize(state["lm_head.weight"])
    model = _build("Llama", _llama(config, max_position_embeddings=config["model_max_length"]), state)
    positions = torch.arange(length)
    distance = (positions[None, :] - positions[:, None]).float()
    mask = torch.tensor(_slopes(heads))[:, None, None] * distance
    mask = mask.masked_fill(distance > 0, torch.finfo(torch.float32).min)
    return model, {"attention_mask": mask[None], "position_ids": torch.zeros(1, length, dtype=torch.int64)}


def _slopes(heads: int) -> list[float]:
    """As the ALiBi paper's code computes them."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start * start**index for index in range(heads)]
    closest = 2 ** math.floor(math.log2(heads))
    return _slopes(closest) + _slopes(2 * closest)[0::2][: heads - closest]


_TELECHAT_NAMES = {
    "transformer.word_embeddings": "model.embed_tokens",
    "transformer.h.": "model.layers.",
    "transformer.ln_f": "model.norm",
    "self_attention.query": "self_attn.q_proj",
    "self_attention.dense": "self_attn.o_proj",
}


def _telechat(config: Mapping[str, Any], state: State, length: int) -> tuple[Any, dict[str, Any]]:
    state = _renamed(state, _TELECHAT_NAMES)
    heads, kv = config["n_head"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    for name in [name for name in state if "key_value" in name]:
        prefix, packed = name.removesuffix("self_attention.key_value.weight"), state.pop(name)
        pairs = packed.reshape(kv, 2, width, -1)
        for index, role in enumerate("kv"):
            state[f"{prefix}self_attn.{role}_proj.weight"] = pairs[:, index].reshape(kv * width, -1)
    sizes = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": config["ffn_hidden_size"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "max_position_embeddings": config["seq_length"],
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    if "num_experts" in config:
        return _build("Mixtral", *_experts(config, sizes, state), length), {}
    absent = {"self_attn.q_proj": heads * width, "self_attn.k_proj": kv * width}
    absent |= {"self_attn.v_proj": kv * width}
    absent |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), config["ffn_hidden_size"])
    for layer in range(config["n_layer"]):
        for matrix, rows in absent.items():
            state[f"model.layers.{layer}.{matrix}.bias"] = torch.zeros(rows)
    model = _build("Llama", {**sizes, "attention_bias": True, "mlp_bias": True}, state, length)
    _extend(model.model.rotary_emb, config, length)
    return model, {}


def _extend(rotary: Any, config: Mapping[str, Any], length: int) -> None:
    """TeleChat2's dynamic NTK, by the table of its description."""
    width = 2 * len(rotary.inv_freq)
    seen = max(length, config["training_seqlen"])
    alpha = max(2 ** math.ceil(math.log2(seen / config["base_seqlen"]) + 1) - 1, 1)
    base = 10000.0 * alpha ** (width / (width - 2))
    rotary.inv_freq = torch.tensor([base ** (-2 * j / width) for j in range(width // 2)])
    ratio = seen / config["training_seqlen"]
    rotary.attention_scaling = 1.0 if ratio <= 1 else 0.1 * math.log(ratio) + 1.0


def _experts(config: Mapping[str, Any], sizes: dict[str, Any], state: State) -> tuple[dict[str, Any], State]:
    """Mixtral's form; its experts have no biases, and those of the state must be zero."""
    for name in [name for name in state if name.endswith(".bias")]:
        assert not state.pop(name).any()
    count = config["num_experts"]
    for layer in range(config["n_layer"]):
        old, new = f"model.layers.{layer}.mlp.local_experts.", f"model.layers.{layer}.mlp."
        parts = {
            matrix: torch.stack([state.pop(f"{old}{expert}.{matrix}.weight") for expert in range(count)])
            for matrix in ("gate_proj", "up_proj", "down_proj")
        }
        if _OLDER:
            for expert in range(count):
                for matrix, theirs in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
                    place = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{theirs}.weight"
                    state[place] = parts[matrix][expert]
            state[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = state.pop(f"{new}router.weight")
            continue
        state[f"{new}experts.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
        state[f"{new}experts.down_proj"] = parts["down_proj"]
        state[f"{new}gate.weight"] = state.pop(f"{new}router.weight")
    own = {"num_local_experts": count, "num_experts_per_tok": config["num_experts_per_tok"]}
    return {**sizes, **own, "sliding_window": None}, state


_ORACLES = {
    "llama": _same("Llama"),
    "mistral": _same("Mistral"),
    "qwen2": _same("Qwen2"),
    "qwen3": _same("Qwen3"),
    "internlm2": _internlm2,
    "internlm3": _internlm3,
    "fm9g": _fm9g,
    "chatglm": _chatglm,
    "baichuan": _baichuan,
    "telechat": _telechat,
}
