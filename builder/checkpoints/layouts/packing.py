"""How plain matrices are packed into one tensor: the order of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from builder.checkpoints.views import Run, View, gathered
from contract.faults import Fault, FaultKind

Packing = Literal["plain", "blocks", "heads", "groups", "interleaved", "experts", "experts_swapped"]
"""``blocks``: one part after the other. ``heads``: for each key/value head its keys, then its values.
``groups``: for each key/value head its queries, its keys, its values. ``interleaved``: in each head, rows i
and i + d/2 side by side, as Meta has them. ``experts``: one part of all experts on a new first axis;
``experts_swapped``: the same with the last two axes swapped."""

QUERY, KEY, VALUE = "q", "k", "v"


@dataclass(frozen=True)
class Facts:
    """What packings need to know of a model; ``None`` where nobody said."""

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    vocab: int | None = None

    def of_rank(self, ranks: int) -> Facts:
        """The part of one of ``ranks`` ranks that share the heads."""
        heads = self.heads // ranks if self.heads else None
        kv_heads = self.kv_heads // ranks if self.kv_heads else None
        return replace(self, heads=heads, kv_heads=kv_heads)

    def attention(self) -> tuple[int, int, int]:
        """heads, kv_heads and head_dim. Raises ``Fault`` when they are not known."""
        if not self.heads or not self.kv_heads or not self.head_dim:
            message = "the checkpoint packs attention heads, and their number is not known"
            hint = "name the model with --model, or put its config.json beside the weights"
            raise Fault(FaultKind.INVALID_REQUEST, message, hint)
        return self.heads, self.kv_heads, self.head_dim


@dataclass(frozen=True)
class Piece:
    """Some rows of one part, in the order of the packed tensor."""

    part: int
    first: int
    count: int


def row_order(packing: Packing, parts: Sequence[str], facts: Facts, rows: int) -> Iterator[Piece]:
    """Which rows of which part follow one another in a packed tensor of ``rows`` rows."""
    if packing == "blocks" and QUERY not in parts:
        yield from (Piece(index, 0, rows // len(parts)) for index in range(len(parts)))
        return
    heads, kv_heads, width = facts.attention()
    if packing == "blocks":
        sizes = [(heads if part == QUERY else kv_heads) * width for part in parts]
        yield from (Piece(index, 0, size) for index, size in enumerate(sizes))
    elif packing == "heads":
        yield from (Piece(index, head * width, width) for head in range(kv_heads) for index in range(2))
    elif packing == "groups":
        group = heads // kv_heads * width
        for head in range(kv_heads):
            yield Piece(0, head * group, group)
            yield from (Piece(index, head * width, width) for index in (1, 2))
    elif packing == "interleaved":
        for row in range((heads if parts[0] == QUERY else kv_heads) * width):
            head, inside = divmod(row, width)
            yield Piece(0, head * width + inside % 2 * (width // 2) + inside // 2, 1)


def packed(packing: Packing, parts: Sequence[str], views: Sequence[View], facts: Facts) -> View:
    """One tensor of plain ones."""
    rows = sum(view.shape[0] for view in views)
    pieces = list(row_order(packing, parts, facts, rows))
    _check(packing, parts, pieces, rows)
    return gathered(
        (rows, *views[0].shape[1:]), (Run(views[piece.part], piece.first, piece.count) for piece in pieces)
    )


def unpacked(packing: Packing, parts: Sequence[str], view: View, facts: Facts) -> list[View]:
    """The plain tensors of one."""
    if not view.shape:
        raise _misfit(parts, 0, 1)
    rows = view.shape[0]
    pieces = list(row_order(packing, parts, facts, rows))
    _check(packing, parts, pieces, rows)
    found: list[list[tuple[int, Run]]] = [[] for _ in parts]
    position = 0
    for piece in pieces:
        found[piece.part].append((piece.first, Run(view, position, piece.count)))
        position += piece.count
    plain = []
    for runs in found:
        ordered = [run for _, run in sorted(runs, key=lambda item: item[0])]
        plain.append(gathered((sum(run.count for run in ordered), *view.shape[1:]), ordered))
    return plain


def _check(packing: Packing, parts: Sequence[str], pieces: Sequence[Piece], rows: int) -> None:
    needed = sum(piece.count for piece in pieces)
    if needed != rows:
        raise _misfit(parts, needed, rows)


def _misfit(parts: Sequence[str], needed: int, rows: int) -> Fault:
    message = f"packs {', '.join(parts)} in {rows} rows, the config says {needed}"
    hint = "the number of heads or their width is another model's: check --model and config.json"
    return Fault(FaultKind.INVALID_MODEL, message, hint)
