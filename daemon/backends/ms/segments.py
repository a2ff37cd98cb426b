"""What one step of the engine computes: pieces of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence, computed together."""

    token_ids: Sequence[int]
    start: int
    """Position of the first of them in the sequence."""
    block_table: Sequence[int]
    """KV blocks of the sequence, enough for ``start + len(token_ids)`` positions."""
    logits_from: int
    """Rows ``token_ids[logits_from:]`` want logits; ``len(token_ids)``: none."""
    rope_base: float
    rope_scale: float
    """Multiplies cos and sin (TeleChat2's mscale)."""
    adapter: int = 0
    """The kernels' handle; 0: none."""
