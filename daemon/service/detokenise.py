"""Ids to text while they arrive: never half a character, and in the end exactly what ``tokenizers`` decodes.

One object per answer. Each push costs the pushed tokens, never the answer so far.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from daemon.service import decoding
from daemon.service.tokenizer import TextTokenizer


class Detokeniser(Protocol):
    def push(self, token_ids: Sequence[int]) -> str:
        """The text that became certain."""
        ...

    def flush(self) -> str:
        """What remains at the end; half characters become U+FFFD."""
        ...


def detokeniser(tokenizer: TextTokenizer, *, skip_special_tokens: bool) -> Detokeniser:
    skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
    if tokenizer.plan.byte_level:
        return _ByteLevel(tokenizer, skipped)
    return _Pieces(tokenizer, skipped)


class _ByteLevel:
    """Byte-level BPE: the answer is one byte string."""

    def __init__(self, tokenizer: TextTokenizer, skipped: frozenset[int]) -> None:
        self._bytes_of = tokenizer.bytes_of
        self._skipped = skipped
        self._held = b""
        """The first bytes of a character."""

    def push(self, token_ids: Sequence[int]) -> str:
        data = self._held + b"".join([self._bytes_of(one) for one in token_ids if one not in self._skipped])
        text, used = codecs.utf_8_decode(data, "replace")
        self._held = data[used:]
        return text

    def flush(self) -> str:
        held, self._held = self._held, b""
        return codecs.utf_8_decode(held, "replace", True)[0]


class _Pieces:
    """SentencePiece-like: text pieces, with runs of byte pieces between them.

    A run is held until it ends, because one bad byte in it turns all its bytes into U+FFFD.
    """

    def __init__(self, tokenizer: TextTokenizer, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._plan = tokenizer.plan
        self._skipped = skipped
        self._run = bytearray()
        self._first = True
        self._strip_character, self._strip_left = tokenizer.plan.strip_start

    def push(self, token_ids: Sequence[int]) -> str:
        return self._stripped("".join([self._one(one) for one in token_ids if one not in self._skipped]))

    def flush(self) -> str:
        return self._stripped(self._end_run())

    def _one(self, token_id: int) -> str:
        piece = self._tokenizer.piece(token_id)
        if piece is None:
            return ""
        first, self._first = self._first, False
        byte = decoding.piece_byte(self._plan, piece)
        if byte is not None:
            self._run.append(byte)
            return ""
        text = decoding.piece_text(self._plan, piece, first=first)
        return self._end_run() + text if self._run else text

    def _end_run(self) -> str:
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(run)

    def _stripped(self, text: str) -> str:
        while self._strip_left and text:
            if not text.startswith(self._strip_character):
                self._strip_left = 0
            else:
                text = text[1:]
                self._strip_left -= 1
        return text
