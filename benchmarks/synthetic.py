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

from builder.families import family_of_config

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
    context: int = 8704

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
TRIAL = Shape(hidden=128, layers=2, heads=2, kv_heads=1, inner=256, vocab=800)


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of any model that the builder knows. Raises ``Fault`` for another."""
    return dict(family_of_config(config, "config.json").expected_tensors(config))


def make_folder(name: str, config: Mapping[str, Any], parent: Path) -> Path:
    """The folder of a model with this configuration, made now unless it is there."""
    folder, partial = parent / name, parent / f"{name}.partial"
    text = json.dumps(config, indent=2) + "\n"
    if folder.is_dir() and (folder / "config.json").read_text("utf-8") == text:
        return folder
    for old in (folder, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(random_weights(config), partial / "model.safetensors", metadata={"format": "pt"})
    train_tokenizer(config["vocab_size"]).save(str(partial / "tokenizer.json"))
    (partial / "config.json").write_text(text, "utf-8")
    for file, content in _OTHER_FILES.items():
        (partial / file).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    partial.rename(folder)
    return folder


def random_weights(config: Mapping[str, Any]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The same for the same configuration, everywhere."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    weights = {}
    for name, size in sorted(tensor_shapes(config).items()):
        values = generator.standard_normal(size, np.float32)
        if "norm" in name:
            weights[name] = 1 + 0.1 * values
        elif name.endswith(".bias"):
            weights[name] = _BIAS_STD * values
        else:
            std = _EMBEDDING_STD if "embed" in name else 1 / math.sqrt(size[-1])
            values *= np.float32(std)
            weights[name] = values
    # Half characters are held back by servers, and their times with them.
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(weights):
        weights[name][:FIRST_WORD] *= np.float32(0.01)
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


_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_OTHER_FILES: Mapping[str, Any] = {
    "generation_config.json": {"do_sample": False, "bos_token_id": 0, "eos_token_id": 0},
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[0],
        "chat_template": _TEMPLATE,
    },
}
