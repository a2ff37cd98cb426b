"""Text to ids for one model, and what each id stands for.

Two views of one tokenizer.json: ``encode`` makes control strings their ids; ``encode_protected`` is for
rendered chats, where only the template's own control strings count. Thread-safe: nothing changes once loaded.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from contract.faults import Fault, FaultKind
from daemon.service import decoding

_LONG_TEXT = 8192
"""Characters from which encoding moves to a thread; below, the hop costs more than the work."""


class TextTokenizer:
    """A model's tokenizer."""

    def __init__(self, source: str) -> None:
        data = json.loads(source)
        self._tokenizer = _frozen(source)
        self.plan = decoding.read_plan(data.get("decoder"))
        added = data.get("added_tokens") or []
        self.special_ids = frozenset(token["id"] for token in added if token.get("special"))
        controls = {token["content"] for token in added if token.get("special") and len(token["content"]) > 1}
        # Longest first, so that of two control strings starting alike the longer is recognised.
        self.control_strings = tuple(sorted(controls, key=lambda text: (-len(text), text)))
        self._nonce = f"\U0010fffd{secrets.token_hex(8)}"
        self._renamed = {
            text: f"{self._nonce}{rank}\U0010fffd" for rank, text in enumerate(self.control_strings)
        }
        self._protected = _frozen(json.dumps(_rename(data, self._renamed), ensure_ascii=False))
        self._alphabet = decoding.byte_level_alphabet() if self.plan.byte_level else {}
        self._control_pattern = re.compile("|".join(map(re.escape, self.control_strings)) or r"(?!)")
        self._bytes: dict[int, bytes] = {}
        self.longest_piece = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)
        """In characters: no token covers more of a text."""

    @classmethod
    def from_file(cls, path: Path) -> TextTokenizer:
        """Raises ``Fault`` INVALID_MODEL if the file is missing or not a tokenizer."""
        try:
            return cls(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            message = f"{path} is missing"
            raise Fault(FaultKind.INVALID_MODEL, message, "package the model again") from None
        except Fault:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            message = f"{path} is not a tokenizer: {error}"
            raise Fault(FaultKind.INVALID_MODEL, message, "package the model again") from None

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    async def encode(self, text: str) -> list[int]:
        """Ids of raw text; control strings become their ids."""
        if len(text) < _LONG_TEXT:
            return self.encode_now(text)
        return await asyncio.to_thread(self.encode_now, text)

    def encode_now(self, text: str) -> list[int]:
        return _ids(self._tokenizer, text)

    async def encode_protected(self, text: str, sentinel: str) -> list[int]:
        """Ids of a text whose broken-up control strings (by ``sentinel``) are plain text."""
        marked = self._control_pattern.sub(lambda match: self._renamed[match[0]], text).replace(sentinel, "")
        if len(marked) < _LONG_TEXT:
            return self._encode_marked(marked)
        return await asyncio.to_thread(self._encode_marked, marked)

    def _encode_marked(self, marked: str) -> list[int]:
        return _ids(self._protected, marked)

    async def decode(self, ids: list[int]) -> str:
        """The whole text, control strings included."""
        if len(ids) * 4 < _LONG_TEXT:
            return str(self._tokenizer.decode(ids, skip_special_tokens=False))
        return str(await asyncio.to_thread(self._tokenizer.decode, ids, skip_special_tokens=False))

    def decode_now(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def piece(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id; ``None`` for an id without one."""
        piece: str | None = self._tokenizer.id_to_token(token_id)
        return piece

    def id_of(self, piece: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(piece)
        return token_id

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that an id contributes within a text."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._bytes_of(token_id)
        return known

    def _bytes_of(self, token_id: int) -> bytes:
        piece = self.piece(token_id)
        if piece is None:
            return b""
        if self.plan.byte_level:
            return decoding.byte_level_bytes(self._alphabet, piece)
        byte = decoding.piece_byte(self.plan, piece)
        return bytes([byte]) if byte is not None else decoding.piece_text(self.plan, piece).encode()


def _frozen(source: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(source)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except TypeError:
        # How tokenizers refuses lone surrogates, which JSON's escapes can smuggle in.
        message = "the text holds half of a surrogate pair, which is no character"
        raise Fault(FaultKind.INVALID_REQUEST, message, "send valid Unicode") from None


def _rename(data: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    """The same tokenizer with control strings that nobody can type, so that the typed ones are plain text."""
    model = dict(data["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(piece, piece): token_id for piece, token_id in vocab.items()}
    else:
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocab]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, renamed)]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    added = [
        {**token, "content": renamed.get(token["content"], token["content"])}
        for token in data["added_tokens"]
    ]
    return {**data, "model": model, "added_tokens": added, "post_processor": None}


def _makes(merge: str | list[str], renamed: dict[str, str]) -> bool:
    """Whether a merge's result or one of its parts is a control string."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in renamed or right in renamed or left + right in renamed
