"""How a tokenizer.json turns ids back into text, read once so that each token costs a table look-up.

Answers exactly what ``tokenizers`` would: byte-level BPE maps characters to bytes; SentencePiece-like
decoders replace ``▁``, join ``<0xNN>`` bytes and strip the leading space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from contract.faults import Fault, FaultKind

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


@dataclass(frozen=True, kw_only=True)
class DecoderPlan:
    """A decoder as data."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    """Applied to each piece, in order."""
    first_drops: str = ""
    """Metaspace: this character vanishes from the first piece."""
    strip_start: tuple[str, int] = ("", 0)
    """A character, and how many of it are taken off the start of the whole text."""


def read_plan(decoder: dict[str, Any] | None) -> DecoderPlan:
    """The plan of tokenizer.json's ``decoder``. Raises ``Fault`` for a kind no language model uses."""
    plan = DecoderPlan()
    if decoder is None:
        return plan
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    for step in steps:
        plan = _add_step(plan, step)
    return plan


def _add_step(plan: DecoderPlan, step: dict[str, Any]) -> DecoderPlan:
    kind = step["type"]
    if kind == "ByteLevel":
        return replace(plan, byte_level=True)
    if kind == "ByteFallback":
        return replace(plan, byte_fallback=True)
    if kind == "Fuse":
        return plan
    if kind == "Metaspace":
        mark = step.get("replacement", "▁")
        drops = "" if step.get("prepend_scheme", "always") == "never" else mark
        return replace(plan, replacements=(*plan.replacements, (mark, " ")), first_drops=drops)
    if kind == "Replace" and "String" in step["pattern"]:
        pair = (step["pattern"]["String"], step["content"])
        return replace(plan, replacements=(*plan.replacements, pair))
    if kind == "Strip" and step.get("stop", 0) == 0:
        return replace(plan, strip_start=(step["content"], step["start"]))
    message = f"tokenizer.json has a decoder of the unsupported kind {kind}"
    raise Fault(FaultKind.INVALID_MODEL, message, "use a byte-level or SentencePiece-like tokenizer")


def piece_text(plan: DecoderPlan, piece: str, *, first: bool = False) -> str:
    """The text of a piece that is not a byte."""
    if first and plan.first_drops:
        piece = piece.replace(plan.first_drops, "")
    for old, new in plan.replacements:
        piece = piece.replace(old, new)
    return piece


def piece_byte(plan: DecoderPlan, piece: str) -> int | None:
    """The byte that a ``<0xNN>`` piece stands for."""
    if not plan.byte_fallback or len(piece) != 6:
        return None
    match = _BYTE_PIECE.match(piece)
    return int(match[1], 16) if match else None


def byte_level_bytes(alphabet: dict[str, int], piece: str) -> bytes:
    """The bytes of a byte-level piece; a piece with other characters stands for itself."""
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:
        return piece.encode()


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's table: the printable bytes are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + position): byte for position, byte in enumerate(others)})
    return table
