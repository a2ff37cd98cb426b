"""Figures to tables: medians, shares of the bounds, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import Bounds
from benchmarks.measure import Result
from benchmarks.prompts import agreement
from benchmarks.synthetic import Shape

OURS = "mindport"
_REFERENCES = ("transformers float32", "llama.cpp f32", "mindport float32")
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
        Column("share of read bound, %", "read_share", 0),
        Column("first token of 128, ms", "first_token_ms", 0),
        Column("prefill 1024, tok/s", "prefill_per_s", 0, ratio=True),
        Column("share of FMA bound, %", "fma_share", 0),
    ]
    for count in several:
        found.append(Column(f"output tok/s, {count} streams", f"output_per_s_{count}", ratio=True))
        found.append(Column(f"gap p50 at {count}, ms", f"gap_ms_{count}", 0))
    found += [Column("cold start, s", "cold_start_s"), Column("peak memory, MB", "peak_mb", 0)]
    return [*found, Column("CPU time taken by others, %", "others_share", 0)]


def add_shares(results: Sequence[Result], shape: Shape, bounds: Bounds) -> None:
    """How near each engine comes to what the machine can do."""
    for result in results:
        decode, prefill = result.samples.get("decode_per_s", []), result.samples.get("prefill_per_s", [])
        fma = [100 * rate * 2 * shape.layer_parameters / (bounds.fma_gflop_s * 1e9) for rate in prefill]
        if decode:
            whole = bounds.read_gb_s * 1e9 / result.engine.weight_bytes()
            result.samples["read_share"] = [100 * rate / whole for rate in decode]
        if prefill:
            result.samples["fma_share"] = fma


def table(results: Sequence[Result], streams: Sequence[int]) -> list[list[str]]:
    """Header and one row an engine that has figures."""
    chosen = columns(streams)
    rows = [["engine", *(column.title for column in chosen), "greedy tokens as the reference"]]
    expected = reference(results)
    for result in results:
        if result.samples:
            cells = [_number(result.median(column.metric), column.digits) for column in chosen]
            rows.append([result.engine.name, *cells, _agreement(result, expected)])
    return rows


def reference(results: Sequence[Result]) -> Result | None:
    by_name = {result.engine.name: result for result in results if result.greedy}
    return next((by_name[name] for name in _REFERENCES if name in by_name), None)


def ratios(results: Sequence[Result], streams: Sequence[int]) -> list[list[str]]:
    """MindPort over each peer of about the same weight width: medians of the rounds' ratios."""
    chosen = [column for column in columns(streams) if column.ratio]
    rows = [
        ["MindPort over", *(column.title.replace(", tok/s", "").replace(" tok/s", "") for column in chosen)]
    ]
    for ours in results:
        for peer in results:
            same_width = round(ours.engine.bits) == round(peer.engine.bits)
            if (
                ours.engine.engine == OURS != peer.engine.engine
                and same_width
                and peer.samples
                and ours.samples
            ):
                cells = [_number(_ratio(ours, peer, column.metric), 2) for column in chosen]
                rows.append([f"{peer.engine.name} ({ours.engine.format})", *cells])
    return rows


def _ratio(ours: Result, peer: Result, metric: str) -> float | None:
    pairs = zip(ours.samples.get(metric, []), peer.samples.get(metric, []), strict=False)
    values = [mine / theirs for mine, theirs in pairs]
    return statistics.median(values) if values else None


def _agreement(result: Result, expected: Result | None) -> str:
    if expected is None or not result.greedy:
        return "–"
    if expected is result:
        return "reference"
    same, total = agreement(expected.greedy, result.greedy)
    return f"{same} of {total}" + ("" if result.engine.is_exact else " (rounded weights)")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    rule = ["---", *(["--:"] * (len(rows[0]) - 1))]
    return "".join("| " + " | ".join(row) + " |\n" for row in [rows[0], rule, *rows[1:]])


def text(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: one column an engine, so that it stays narrow."""
    turned = list(zip(*rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in zip(*turned, strict=True)]
    lines = []
    for row in turned:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def as_data(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every sample, for programs."""
    return [
        {
            "engine": result.engine.engine,
            "format": result.engine.format,
            "detail": result.engine.detail,
            "problem": result.problem,
            "samples": result.samples,
            "medians": {metric: result.median(metric) for metric in result.samples},
        }
        for result in results
    ]
