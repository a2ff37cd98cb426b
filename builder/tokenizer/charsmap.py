"""Edits SentencePiece's compiled normalisation table, so that user symbols pass through it unchanged.

SentencePiece looks for user symbols before it normalises; the ``tokenizers`` library normalises first. The
table is a double array (darts-clone) of 32-bit units, whose leaves point at strings behind it.
"""

from __future__ import annotations

import struct

_LEAF = 1 << 31
_HAS_LEAF = 1 << 8
_BLOCK = 256


def protect(charsmap: bytes, symbols: list[str]) -> bytes:
    """The table with each one-byte symbol, as a newline or a tab, mapped to itself.

    Longer symbols are left alone: their entries may be shared, and the proof says whether it matters.
    """
    size = struct.unpack_from("<I", charsmap)[0]
    units = list(struct.unpack_from(f"<{size // 4}I", charsmap, 4))
    strings = bytearray(charsmap[4 + size :])
    for symbol in symbols:
        key = symbol.encode()
        node = _offset(units[0]) ^ key[0]
        if len(key) == 1 and node < len(units) and units[node] & (_LEAF | 0xFF) == key[0]:
            # Entries with equal results share their leaf: give this one a leaf of its own, behind all others.
            units += [0] * (-len(units) % _BLOCK)
            base = len(units)
            units += [len(strings) | _LEAF] + [0] * (_BLOCK - 1)
            units[node] = (base ^ node) << 10 | _HAS_LEAF | key[0]
            strings += key + b"\0"
    return struct.pack(f"<{1 + len(units)}I", len(units) * 4, *units) + bytes(strings)


def has_key(charsmap: bytes, byte: int) -> bool:
    """Whether the table changes this one-byte character, or some text that begins with it."""
    root, node_count = struct.unpack_from("<I", charsmap, 4)[0], struct.unpack_from("<I", charsmap)[0] // 4
    node = _offset(root) ^ byte
    if node >= node_count:
        return False
    unit: int = struct.unpack_from("<I", charsmap, 4 + 4 * node)[0]
    return unit & (_LEAF | 0xFF) == byte


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)
