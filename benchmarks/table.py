"""Figures to tables: medians, shares of the bounds, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.goals import fma_shares, read_shares
from benchmarks.prompts import agreement
from benchmarks.subject import Result, ratio
from benchmarks.synthetic import Shape
from benchmarks.visits import DISTURBED

_REFERENCES = ("transformers float32", "ctranslate2 float32", "llama.cpp f32", "mindport float32")
"""Whose greedy tokens the others are compared with: the first that has some."""


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    metric: str
    digits: int = 1
    ratio: bool = False
    """Larger is better, and worth a ratio."""


def columns(streams: Sequence[int]) -> list[Column]:
    several = [count for count in streams if count > 1]
    found = [
        Column("decode, tok/s", "decode_per_s", ratio=True),
        Column("read bound then, GB/s", "read_gb_s"),
        Column("share of it, %", "read_share", 0),
        Column("first token of 128, ms", "first_token_ms", 0),
        Column("prefill 1024, tok/s", "prefill_per_s", 0, ratio=True),
        Column("share of FMA peak, %", "fma_share", 0),
    ]
    for count in several:
        found.append(Column(f"output tok/s, {count} streams", f"output_per_s_{count}", ratio=True))
        found.append(Column(f"gap p50 at {count}, ms", f"gap_ms_{count}", 0))
    found += [Column("repeated prefix, %", "prefix_share"), Column("cold start, s", "cold_start_s")]
    return [
        *found,
        Column("peak memory, MB", "peak_mb", 0),
        Column("CPUs taken by others, %", "others_share"),
    ]


def table(results: Sequence[Result], shape: Shape, streams: Sequence[int]) -> list[list[str]]:
    """Header and one row an engine that has figures."""
    chosen = columns(streams)
    titles = [column.title for column in chosen]
    rows = [["engine", *titles, "rounds", "greedy tokens as the reference"]]
    expected = reference(results)
    for result in results:
        if result.has_figures:
            cells = [_number(_value(result, column.metric, shape), column.digits) for column in chosen]
            mark = "*" if (result.median("others_share") or 0) > DISTURBED else ""
            rounds = str(len(result.by_round("decode_per_s")))
            rows.append([result.subject.name + mark, *cells, rounds, _agreement(result, expected)])
    return rows


def _value(result: Result, metric: str, shape: Shape) -> float | None:
    if metric == "read_share":
        shares = read_shares(result)
    elif metric == "fma_share":
        shares = fma_shares(result, shape)
    else:
        return result.median(metric)
    return statistics.median(shares) if shares else None


def reference(results: Sequence[Result]) -> Result | None:
    by_name = {result.subject.name: result for result in results if result.greedy}
    return next((by_name[name] for name in _REFERENCES if name in by_name), None)


def ratios(results: Sequence[Result], streams: Sequence[int]) -> list[list[str]]:
    """MindPort over each peer of about the same weight width: medians of the rounds' ratios."""
    chosen = [column for column in columns(streams) if column.ratio]
    rows = [
        ["MindPort over", *(column.title.replace(", tok/s", "").replace(" tok/s", "") for column in chosen)]
    ]
    for ours in results:
        for peer in results:
            same_width = ours.subject.width == peer.subject.width
            if ours.subject.is_ours and not peer.subject.is_ours and same_width and peer.has_figures:
                cells = [_number(ratio(ours, peer, column.metric), 2) for column in chosen]
                rows.append([f"{peer.subject.name} ({ours.subject.format})", *cells])
    return rows


def _agreement(result: Result, expected: Result | None) -> str:
    if expected is None or not result.greedy:
        return "–"
    if expected is result:
        return "reference"
    same, total = agreement(expected.greedy, result.greedy)
    return f"{same} of {total}" + ("" if result.subject.width == 32 else " (rounded weights)")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def markdown(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table; after the first ``words`` columns figures, to the right."""
    rule = [*(["---"] * words), *(["--:"] * (len(rows[0]) - words))]
    return "".join("| " + " | ".join(row) + " |\n" for row in [rows[0], rule, *rows[1:]])


def text(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def turned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """One column an engine, so that it stays narrow."""
    return [list(column) for column in zip(*rows, strict=True)]
