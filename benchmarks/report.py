"""Writes what was measured: results.json, results.md, results.txt, results.svg."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import plot, table
from benchmarks.machine import Bounds
from benchmarks.measure import Result
from benchmarks.synthetic import Shape


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked for, where and when."""

    command: str
    machine: Mapping[str, str]
    streams: tuple[int, ...]
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen in so many rounds."""

    run: Run
    shape: Shape
    bounds: Bounds
    rounds: int
    results: Sequence[Result]
    missing: Mapping[str, str]
    """Engines without figures, with the reason."""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(
            json.dumps(self._data(), indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        (folder / "results.md").write_text(self.markdown(), "utf-8")
        (folder / "results.txt").write_text(self.text(), "utf-8")
        (folder / "results.svg").write_text(plot.svg(self._panels()), "utf-8")

    def text(self) -> str:
        parts = ["\n".join(self._lines()), table.text(self._rows())]
        ratios = table.ratios(self.results, self.run.streams)
        if len(ratios) > 1:
            parts.append("MindPort over a peer of the same weight width; above 1, MindPort is faster:\n")
            parts.append(table.text(ratios))
        if self.missing:
            parts.append(
                "not measured:\n" + "\n".join(f"  {name}: {why}" for name, why in self.missing.items())
            )
        return "\n".join(parts) + "\n"

    def markdown(self) -> str:
        parts = ["\n".join(f"- {line}" for line in self._lines()) + "\n", table.markdown(self._rows())]
        ratios = table.ratios(self.results, self.run.streams)
        if len(ratios) > 1:
            parts.append(table.markdown(ratios))
        if self.missing:
            parts.append(
                "Not measured:\n\n"
                + "\n".join(f"- {name}: {why}" for name, why in self.missing.items())
                + "\n"
            )
        return "\n".join(parts)

    def _rows(self) -> list[list[str]]:
        return table.table(self.results, self.run.streams)

    def _lines(self) -> list[str]:
        shape, bounds = self.shape, self.bounds
        return [
            f"command: {self.run.command}",
            f"date: {self.run.date}",
            *(f"{name}: {value}" for name, value in self.run.machine.items()),
            f"model: {shape.name}, {shape.parameters / 1e6:.1f} M weights, random",
            f"bounds: {bounds.read_gb_s:.1f} GB/s read, {bounds.fma_gflop_s:.0f} GFLOP/s float32",
            f"bounds by {bounds.method}",
            f"rounds: {self.rounds}; figures are medians",
            *(f"{result.engine.name}: {result.engine.detail}" for result in self.results if result.samples),
        ]

    def _panels(self) -> list[plot.Panel]:
        panels: list[plot.Panel] = []
        for column in table.columns(self.run.streams):
            values = [(result, result.median(column.metric)) for result in self.results]
            bars = [
                (result.engine.name, value, result.engine.engine == table.OURS)
                for result, value in values
                if value is not None
            ]
            if column.ratio:
                panels.append((column.title, bars))
        return panels

    def _data(self) -> dict[str, object]:
        return {
            "command": self.run.command,
            "date": self.run.date,
            "machine": dict(self.run.machine),
            "model": asdict(self.shape),
            "bounds": asdict(self.bounds),
            "rounds": self.rounds,
            "results": table.as_data(self.results),
            "missing": dict(self.missing),
        }
