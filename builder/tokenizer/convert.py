"""Writes a SentencePiece model as a ``tokenizers`` Tokenizer that gives the same ids.

Control strings in the text become their ids, and every text between them is encoded on its own, with its own
dummy prefix: what the families' own servers do. With a normalisation table (nmt_nfkc), the ``tokenizers``
library treats a compatibility character with a combining mark behind it in its own way, and such pairs
differ; no family here has a table. Whether the result is right is for ``prove`` to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.tokenizer.charsmap import has_key, protect
from builder.tokenizer.sentencepiece_model import ModelType, PieceType, SentencePieceModel
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import Decoder
    from tokenizers.models import BPE, Unigram
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

_SPACE = "\u2581"
"""SentencePiece's visible space."""


@dataclass(frozen=True)
class AddedTokens:
    """What a tokenizer_config.json says beyond the SentencePiece model."""

    names: Mapping[int, str]
    """Id -> text of tokens that are cut out of the text, by their published name."""
    begin_ids: tuple[int, ...] = ()
    """Put in front of every text when the publisher's tokenizer does so."""


def special_tokens(model: SentencePieceModel, added: AddedTokens) -> dict[str, int]:
    """Every string that is cut out of the text, with its id."""
    own = {index: piece.text for index, piece in enumerate(model.pieces) if piece.is_special}
    return {text: index for index, text in sorted({**own, **added.names}.items())}


def convert(model: SentencePieceModel, added: AddedTokens) -> Tokenizer:
    """The tokenizer as the ``tokenizers`` library reads it. Raises ``Fault`` for what it cannot express."""
    from tokenizers import AddedToken, Tokenizer, processors

    _refuse_inexpressible(model)
    names = [added.names.get(index, piece.text) for index, piece in enumerate(model.pieces)]
    core = _bpe(model, names) if model.model_type is ModelType.BPE else _unigram(model, names)
    tokenizer = Tokenizer(core)
    tokenizer.normalizer = _normalizer(model)
    pre_tokenizer = _pre_tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = _decoder(model)
    specials = special_tokens(model, added)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    for text, index in specials.items():
        if tokenizer.token_to_id(text) != index:
            message = (
                f"added token {text!r} has id {index}, but the next free id is {tokenizer.token_to_id(text)}"
            )
            raise Fault(
                FaultKind.INVALID_MODEL, message, "correct added_tokens_decoder in tokenizer_config.json"
            )
    if added.begin_ids:
        begins = [
            (text, index) for index in added.begin_ids for text, own in specials.items() if own == index
        ]
        begin = " ".join(text for text, _ in begins)
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{begin} $A", f"{begin} $A {begin} $B", begins
        )
    return tokenizer


def _refuse_inexpressible(model: SentencePieceModel) -> None:
    reason = ""
    if model.model_type not in (ModelType.BPE, ModelType.UNIGRAM):
        reason = f"its type {model.model_type.name} is neither BPE nor UNIGRAM"
    elif model.whitespace_as_suffix:
        reason = "it puts spaces at the end of words"
    elif not model.escape_whitespaces:
        reason = "it does not escape spaces"
    elif any(piece.type is PieceType.UNUSED for piece in model.pieces):
        reason = "it has unused pieces"
    if reason:
        hint = "put a tokenizer.json of the publisher beside it and remove tokenizer.model"
        raise Fault(
            FaultKind.UNSUPPORTED, f"tokenizer.model cannot be written as tokenizer.json: {reason}", hint
        )


def _bpe(model: SentencePieceModel, names: list[str]) -> BPE:
    from tokenizers.models import BPE

    vocab = {name: index for index, name in enumerate(names)}
    long_symbols = any(len(text) > 1 for text in _user_symbols(model))
    return BPE(
        vocab,
        list(_merges(model)),
        unk_token=names[model.unk_id],
        fuse_unk=not model.byte_fallback,
        byte_fallback=model.byte_fallback,
        ignore_merges=long_symbols,
    )


def _merges(model: SentencePieceModel) -> Iterator[tuple[str, str]]:
    """The pairs SentencePiece would join, best first.

    SentencePiece joins the pair whose joined piece scores best, leftmost first. Pairs of one piece must
    therefore be ordered so that, where two of them overlap in a text, the left one comes first: if the
    piece's last ``n`` characters are also its first ``n``, the pair split before the last ``n`` goes before
    the pair split after the first ``n``.
    """
    frozen = [text for text in _user_symbols(model) if len(text) == 1]
    known = {piece.text for piece in model.pieces if piece.type is PieceType.NORMAL}
    for piece in sorted(
        (piece for piece in model.pieces if piece.type is PieceType.NORMAL and len(piece.text) > 1),
        key=lambda piece: -piece.score,
    ):
        text = piece.text
        if any(symbol in text for symbol in frozen):
            continue
        for split in _split_order(text):
            left, right = text[:split], text[split:]
            if left in known and right in known:
                yield left, right


def _split_order(text: str) -> list[int]:
    length = len(text)
    order = list(range(1, length))
    for border in range(1, length):
        if text.startswith(text[length - border :]) and length - border > border:
            order.remove(length - border)
            order.insert(order.index(border), length - border)
    return order


def _unigram(model: SentencePieceModel, names: list[str]) -> Unigram:
    """Scores follow SentencePiece: user symbols win; bytes and control pieces lose to their own letters."""
    from tokenizers.models import Unigram

    scores = [piece.score for piece in model.pieces if piece.type is PieceType.NORMAL] or [0.0]
    best, worst = max(scores), min(scores)
    vocab = []
    for name, piece in zip(names, model.pieces, strict=True):
        score = piece.score
        if piece.type is PieceType.USER_DEFINED:
            score = len(piece.text.encode()) * best - 0.1
        elif piece.type is not PieceType.NORMAL:
            score = worst * (len(piece.text) + 1) - 100.0
        vocab.append((name, score))
    return Unigram(vocab, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


def _normalizer(model: SentencePieceModel) -> Normalizer:
    from tokenizers import Regex, normalizers

    steps: list[Normalizer] = []
    if model.charsmap:
        if has_key(model.charsmap, 13):
            # The library would take the pair for one character and lose the newline.
            steps.append(normalizers.Replace(Regex("\r(?=\n)"), " "))
        steps.append(normalizers.Precompiled(protect(model.charsmap, _user_symbols(model))))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +"), ""))
        steps.append(normalizers.Replace(Regex(rf"[ {_SPACE}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _user_symbols(model: SentencePieceModel) -> list[str]:
    return [piece.text for piece in model.pieces if piece.type is PieceType.USER_DEFINED]


def _pre_tokenizer(model: SentencePieceModel) -> PreTokenizer | None:
    """Cuts around user symbols and within the names of byte pieces; cuts no piece that text can give."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[PreTokenizer] = []
    symbols = sorted(_user_symbols(model), key=len, reverse=True)
    long_symbols = model.model_type is ModelType.BPE and any(len(text) > 1 for text in symbols)
    if long_symbols:
        # Those of one character never merge anyway.
        pattern = "|".join(re.escape(text.replace(" ", _SPACE)) for text in symbols)
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if long_symbols or model.model_type is ModelType.UNIGRAM:
        # The text "<0x41>" is six letters, not the byte piece of that name.
        steps.extend(
            pre_tokenizers.Split(Regex(each), "merged_with_previous") for each in _named_pieces(model)
        )
    return pre_tokenizers.Sequence(steps) if steps else None


def _named_pieces(model: SentencePieceModel) -> Iterator[str]:
    """First letters of the names that text must not give, unless a piece joins its second."""
    joined = [
        piece.text for piece in model.pieces if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)
    ]
    names = [re.escape(piece.text) for piece in model.pieces if piece.is_special and len(piece.text) > 1]
    for first, rest in [("<", "0x[0-9A-F]{2}>"), *((name[0], name[1:]) for name in names)]:
        if first != "\\" and not any(first + rest[0] in text for text in joined):
            yield f"{first}(?={rest})"


def _decoder(model: SentencePieceModel) -> Decoder:
    from tokenizers import decoders

    steps: list[Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
