"""The model that is measured: Qwen2's shape with random weights, as a HuggingFace folder, made on the spot.

Weights are scaled so that the layers, not the embedding, decide the next token: equal greedy tokens then mean
that two engines compute the same function.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20261121
FIRST_WORD = 300
"""Ids below are control tokens and single bytes; they are in no prompt, and no answer has them."""
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_EMBEDDING_STD = 0.02
_BIAS_STD = 0.02
_LETTERS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen2 decoder with a tied head."""

    hidden: int = 896
    layers: int = 24
    heads: int = 14
    kv_heads: int = 2
    inner: int = 4864
    vocab: int = 32000
    context: int = 2048

    @property
    def name(self) -> str:
        return f"qwen2-{self.layers}x{self.hidden}"

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers' matrices: what a prompt token is multiplied with."""
        attention = 2 * self.hidden * self.hidden + 2 * self.kv_heads * self.head_dim * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def parameters(self) -> int:
        """Weights of all matrices: what one decoded token reads."""
        return self.layer_parameters + self.vocab * self.hidden

    def to_config(self) -> dict[str, Any]:
        """``config.json``."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "float32",
        }


BENCHMARK = Shape()
TRIAL = Shape(hidden=64, layers=2, heads=4, kv_heads=2, inner=128, vocab=800)


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor."""
    kv = shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    yield "model.norm.weight", (shape.hidden,)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (shape.hidden,)
        yield f"{name}.post_attention_layernorm.weight", (shape.hidden,)
        for part, rows in (("q_proj", shape.hidden), ("k_proj", kv), ("v_proj", kv)):
            yield f"{name}.self_attn.{part}.weight", (rows, shape.hidden)
            yield f"{name}.self_attn.{part}.bias", (rows,)
        yield f"{name}.self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield f"{name}.mlp.gate_proj.weight", (shape.inner, shape.hidden)
        yield f"{name}.mlp.up_proj.weight", (shape.inner, shape.hidden)
        yield f"{name}.mlp.down_proj.weight", (shape.hidden, shape.inner)


def make_folder(shape: Shape, parent: Path) -> Path:
    """The model's folder, made now unless it is there."""
    folder = parent / shape.name
    if folder.is_dir():
        return folder
    partial = parent / f"{shape.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(random_weights(shape), partial / "model.safetensors", metadata={"format": "pt"})
    train_tokenizer(shape.vocab).save(str(partial / "tokenizer.json"))
    for name, content in _json_files(shape).items():
        (partial / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    partial.rename(folder)
    return folder


def random_weights(shape: Shape) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The same for the same shape, everywhere."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    weights = {}
    for name, size in tensor_shapes(shape):
        values = generator.standard_normal(size, np.float32)
        if "norm" in name:
            weights[name] = 1 + 0.1 * values
        elif name.endswith(".bias"):
            weights[name] = _BIAS_STD * values
        else:
            std = _EMBEDDING_STD if "embed" in name else 1 / math.sqrt(size[1])
            values *= np.float32(std)
            weights[name] = values
    # Half characters are held back by servers, and their times with them.
    weights["model.embed_tokens.weight"][:FIRST_WORD] *= np.float32(0.01)
    return weights


def train_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab`` tokens, trained on made-up words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(2 * vocab), trainer)
    size = tokenizer.get_vocab_size()
    if size != vocab:
        raise RuntimeError(f"the tokenizer has {size} tokens instead of {vocab}")
    return tokenizer


def _sentences(words: int) -> Iterator[str]:
    generator = np.random.Generator(np.random.PCG64(SEED))
    syllables = [a + b for a in _LETTERS for b in _VOWELS]
    for _ in range(words // 10):
        lengths = generator.integers(2, 5, 10)
        chosen = [generator.integers(0, len(syllables), length) for length in lengths]
        yield " ".join("".join(syllables[index] for index in word) for word in chosen)


def _json_files(shape: Shape) -> Mapping[str, Any]:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return {
        "config.json": shape.to_config(),
        "generation_config.json": {"do_sample": False, "bos_token_id": 0, "eos_token_id": 0},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIALS[0],
            "chat_template": template,
        },
    }
