"""Encodes a probe set with SentencePiece and with ``tokenizer.json``: the ids must be the same."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from builder.tokenizer.sentencepiece_model import ModelType, PieceType, SentencePieceModel
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

PROBES = (
    "生抽与老抽的区别？",
    "你好",
    "Hello world\nfoo",
    "a\n\nb",
    "1+1=2",
    "\n",
    "\t\ttabs\tand\r\nline ends\r",
    " leading",
    "trailing ",
    "  two  spaces   three    four  ",
    " ",
    "",
    "2024年11月21日，气温 -3.5℃，占比 12.75%。",
    "中文English混排123abc、标点：；（）《》“”——……",
    "def f(x):\n    return x ** 2  # 平方\n",
    '{"name": "天气", "arguments": {"city": "北京"}}',
    "https://example.com/path?q=1&r=%E4%BD%A0#frag",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji 🇨🇳",
    "éè ñ ü ß Ω я ا ह ก 한국어 かな カナ",
    "𠮷𡃁 𝒳𝓎 \U0010ffff \ue000",
    "<0x41> <0x0A> <unk> <s> </s>",
    "▁ ▁▁ a▁b",
    "aaaaaaaaaaaaaaaa 哈哈哈哈哈哈哈哈 .......... ----------",
    "\x00\x01\x7f\u200b\u3000\ufeff\u00a0",
    "ＡＢＣ１２３　全角",
    "I'm you're it's don't",
)
_SAMPLED_PIECES = 4000
_PIECES_PER_LINE = 8


class SentencePieceOracle:
    """What a text means to the publisher: control strings cut out, every text between them on its own."""

    def __init__(self, processor: SentencePieceProcessor, specials: Mapping[str, int]) -> None:
        self._processor = processor
        self._specials = specials
        longest_first = sorted(specials, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(re.escape(text) for text in longest_first) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._pattern.split(text) if self._specials else [text]:
            if part in self._specials:
                ids.append(self._specials[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids


def probe_texts(model: SentencePieceModel, specials: Mapping[str, int]) -> list[str]:
    """Built-in texts, the same between control strings, and lines made of the vocabulary's own pieces."""
    texts = list(PROBES)
    names = list(specials)
    for index, probe in enumerate(PROBES):
        if names:
            first, second = names[index % len(names)], names[(index * 7 + 3) % len(names)]
            texts.append(f"{first}{probe}{second}\n{first} {probe}")
    normal = [
        piece.text for piece in model.pieces if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)
    ]
    step = max(1, len(normal) // _SAMPLED_PIECES)
    sampled = [text.replace("\u2581", " ") for text in normal[::step]]
    starts = range(0, len(sampled), _PIECES_PER_LINE)
    texts.extend("".join(sampled[start : start + _PIECES_PER_LINE]) for start in starts)
    texts.extend(sampled[::_PIECES_PER_LINE])
    return texts


def is_tie(model: SentencePieceModel, first: list[int], second: list[int]) -> bool:
    """Whether two ways to cut a text are equally likely to a unigram model.

    SentencePiece adds scores in float32, the ``tokenizers`` library in float64: between equals, rounding
    decides.
    """
    if model.model_type is not ModelType.UNIGRAM:
        return False
    totals = [
        sum(model.pieces[index].score for index in ids if index < len(model.pieces))
        for ids in (first, second)
    ]
    return math.isclose(*totals, rel_tol=1e-5)


def prove_equal(
    tokenizer: Tokenizer, oracle: SentencePieceOracle, model: SentencePieceModel, texts: list[str]
) -> None:
    """Compare both on every text. Raises ``Fault`` naming the first text that differs."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        expected = oracle.encode(text)
        if encoding.ids != expected and not is_tie(model, encoding.ids, expected):
            shown = text if len(text) <= 80 else text[:77] + "..."
            ours, theirs = encoding.ids[:12], expected[:12]
            message = f"tokenizer.json would encode {shown!r} as {ours}, tokenizer.model says {theirs}"
            hint = "put a tokenizer.json of the publisher beside it and remove tokenizer.model"
            raise Fault(FaultKind.INVALID_MODEL, message, hint, {"text": text})
