"""Folders as the publishers offer them, at full size: sparse weights, and control tokens at their ids."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from builder.families import family_named
from builder.recipe import find_recipe

CORPUS = (
    "你好，世界。生抽与老抽的区别？老抽颜色深，生抽味道鲜。",
    "hello world, hello there; the philosophy of a sophisticated sophist",
    "1+1=2 and 10-3=7\n\nYou are a helpful assistant.\n",
    "天气很好，我们去公园玩。问：答：[Round 1]\n\n[Round 2]\n\n",
    "system user assistant User",
) * 8
_NORMAL, _CONTROL = 1, 3
_FILLER = 0x20000
"""First of the characters that fill a vocabulary up: nobody writes them, and nothing merges with them."""


@dataclass(frozen=True)
class Vocabulary:
    """What a publisher's tokenizer.model holds."""

    pieces: int
    names: tuple[str, str, str, str] = ("<unk>", "<s>", "</s>", "")
    """Of unknown, beginning, end and padding; the last one may be missing."""
    controls: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    """The names of its last pieces."""


_RESERVED = (*(f"<unused_{index}>" for index in range(192)), "<reserved_106>", "<reserved_107>")
_TELECHAT = ("<_user>", "<_bot>", "<_system>", "<_observation>", "<_sep>")
_TELECHAT_NAMES = ("<_unk>", "<_start>", "<_end>", "<_pad>")
VOCABULARIES: Mapping[str, Vocabulary] = {
    "telechat": Vocabulary(
        131072,
        _TELECHAT_NAMES,
        (*_TELECHAT, *(f"<_control{number}>" for number in range(1, 10))),
        ("\n", "\t"),
    ),
    "llama": Vocabulary(32000),
    "baichuan": Vocabulary(125696, symbols=_RESERVED),
    "internlm2": Vocabulary(92544, last=tuple(f"[UNUSED_TOKEN_{number}]" for number in range(141, 147))),
    "chatglm": Vocabulary(64789, ("<unk>", "<s>", "</s>", "")),
    "fm9g": Vocabulary(73440),
}
_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "telechat": {"add_bos_token": False, "eos_token": "<_end>", "bos_token": "<_start>"},
    "llama": {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
    "baichuan": {"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>"},
    "internlm2": {"bos_token": "<s>", "eos_token": "</s>"},
    "chatglm": {},
    "fm9g": {"bos_token": "<s>", "eos_token": "<|im_end|>"},
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
"""What their tokenizer_config.json says, as far as it matters."""
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """A small byte-fallback BPE model, filled up to the publisher's size."""
    unknown, begin, end, pad = vocabulary.names
    writer = io.BytesIO()
    special = len(vocabulary.controls) + len(vocabulary.symbols)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=writer,
        model_type="bpe",
        vocab_size=420 + special,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=list(vocabulary.controls),
        user_defined_symbols=list(vocabulary.symbols),
        unk_piece=unknown,
        bos_piece=begin,
        eos_piece=end,
        pad_id=3 if pad else -1,
        pad_piece=pad or "<pad>",
        minloglevel=2,
    )
    data = writer.getvalue()
    held = sentencepiece.SentencePieceProcessor(model_proto=data).get_piece_size()
    wanted = vocabulary.pieces - held - len(vocabulary.last)
    fillers = [chr(_FILLER + index) for index in range(wanted)]
    return data + b"".join(_piece(text) for text in (*fillers, *vocabulary.last))


def _piece(text: str) -> bytes:
    """A piece as a field of the model: protobuf joins what is appended."""
    raw = text.encode()
    body = b"\x0a" + bytes([len(raw)]) + raw + b"\x15" + struct.pack("<f", -1e6) + b"\x18" + bytes([_NORMAL])
    return b"\x0a" + bytes([len(body)]) + body


def qwen_tokenizer() -> Tokenizer:
    """Byte-level BPE, cut as Qwen cuts, with its control tokens at their ids."""
    trained = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    data = json.loads(trained.to_str())
    vocab = data["model"]["vocab"]
    vocab.update({chr(_FILLER + index): index for index in range(len(vocab), 151643)})
    whole: Tokenizer = Tokenizer.from_str(json.dumps(data))
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    whole.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return whole


def write_weights(path: Path, family_name: str, config: Mapping[str, Any]) -> int:
    """A safetensors file of bfloat16 zeros that takes no room on disk; its size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in family_named(family_name).expected_tensors(config):
        size = 2
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return 8 + len(text) + offset


def write_sources(folder: Path, recipe_name: str, tokenizer: bytes, **config: Any) -> Path:
    """What a recipe's publisher offers; ``config`` is its config.json beyond the recipe's architecture."""
    recipe = find_recipe(recipe_name).recipe
    folder.mkdir(parents=True, exist_ok=True)
    values = {**recipe.architecture, **config}
    family = family_named(recipe.family)
    stated = {"architectures": [family.architectures[0]], "model_type": family.model_type}
    (folder / "config.json").write_text(json.dumps({**stated, **values}))
    write_weights(folder / "model.safetensors", recipe.family, values)
    name = "tokenizer.json" if recipe.family == "qwen2" else "tokenizer.model"
    (folder / name).write_bytes(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIGS[recipe.family]))
    return folder


def tokenizer_of(family: str, pieces: int | None = None) -> bytes:
    """The content of tokenizer.model or tokenizer.json; ``pieces`` for fewer than the publisher's."""
    if family == "qwen2":
        return qwen_tokenizer().to_str().encode()
    vocabulary = VOCABULARIES[family]
    return sentencepiece_model(replace(vocabulary, pieces=pieces or vocabulary.pieces))
