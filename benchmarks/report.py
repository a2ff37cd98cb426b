"""Writes what was measured: results.json, results.md, results.txt, results.svg; and the documents."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import goals, plot, table
from benchmarks.load import EngineError
from benchmarks.machine import Bounds
from benchmarks.subject import Result, Visit, best_peer, ratio, results_of
from benchmarks.synthetic import Shape
from benchmarks.variants import Variant
from benchmarks.visits import DISTURBED

_CHART = Path("pictures", "benchmarks.svg")
_BEGIN, _END = "<!-- results: written by scripts/bench --write-docs -->", "<!-- end of results -->"


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked for, where and when."""

    command: str
    machine: Mapping[str, str]
    streams: tuple[int, ...]
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))


@dataclass(frozen=True, slots=True)
class Report:
    """What came out of all visits so far."""

    run: Run
    shape: Shape
    variants: Sequence[Variant]
    visits: Sequence[Visit]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(
            json.dumps(self._data(), indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        (folder / "results.md").write_text(self.markdown(), "utf-8")
        (folder / "results.txt").write_text(self.text(), "utf-8")
        (folder / "results.svg").write_text(self.chart(), "utf-8")

    @property
    def goals(self) -> list[goals.Goal]:
        return goals.goals(self.visits, self.shape, self.run.streams, self.variants)

    def text(self) -> str:
        parts = [f"command: {self.run.command}", "\n".join(self._lines()), table.text(goals.rows(self.goals))]
        parts.append(table.text(table.turned(self._rows())))
        if len(self._ratios()) > 1:
            parts.append("MindPort over a peer of the same weight width; above 1, MindPort is faster:\n")
            parts.append(table.text(self._ratios()))
        for title, lines in self._notes().items():
            parts.append("\n".join([f"{title}:", *(f"  {line}" for line in lines)]) + "\n")
        return "\n".join(parts)

    def markdown(self) -> str:
        parts = ["\n".join(f"- {line}" for line in self._lines()) + "\n"]
        parts += [table.markdown(goals.rows(self.goals), words=2), table.markdown(self._rows())]
        if len(self._ratios()) > 1:
            parts.append(table.markdown(self._ratios()))
        notes = [f"- {title}: {line}\n" for title, lines in self._notes().items() for line in lines]
        return "\n".join([*parts, "".join(notes)] if notes else parts)

    def chart(self) -> str:
        return plot.svg(list(self._panels()))

    def write_documents(self, docs: Path, cache: Path) -> None:
        """Between the marks of both languages; the chart beside them. Raises ``EngineError``."""
        picture = f"![decode, prefill and output of each engine](../{_CHART})"
        tables = f"{picture}\n\n{self.markdown()}".replace(str(cache), "CACHE")
        pages = [docs / language / "benchmarks.md" for language in ("en", "zh")]
        for page in pages:
            written = between_marks(page.read_text("utf-8"), f"```bash\n{self.run.command}\n```\n\n{tables}")
            page.write_text(written, "utf-8")
        (docs / _CHART).write_text(self.chart(), "utf-8")

    @property
    def _peers(self) -> list[Result]:
        return results_of(self.visits, "peers")

    def _rows(self) -> list[list[str]]:
        return table.table(self._peers, self.shape, self.run.streams)

    def _ratios(self) -> list[list[str]]:
        return table.ratios(self._peers, self.run.streams)

    def _lines(self) -> list[str]:
        shape, met = self.shape, [goal.is_met for goal in self.goals]
        return [
            f"date: {self.run.date}",
            *(f"{name}: {value}" for name, value in self.run.machine.items()),
            f"model: {shape.name}, {shape.parameters / 1e6:.1f} M weights, random",
            *_bounds_line(self.visits),
            "figures are medians of the rounds; * marks an engine whose CPUs were taken by others",
            *(
                f"{result.subject.name}: {result.subject.detail}"
                for result in self._peers
                if result.has_figures
            ),
            f"goals: {met.count(True)} met, {met.count(False)} not met, {met.count(None)} not measured",
        ]

    def _notes(self) -> dict[str, list[str]]:
        """What has no figures, and whose figures are too low."""
        notes: dict[str, list[str]] = {}
        for visit in self.visits:
            name, others = f"{visit.subject.name} ({visit.part})", visit.values.get("others_share", 0.0)
            if visit.problem:
                notes.setdefault("not measured", []).append(f"{name}: {visit.problem}")
            if others > DISTURBED:
                notes.setdefault("disturbed", []).append(f"{name}: others took {others:.0f} % of its CPUs")
        return notes

    def _panels(self) -> Iterator[plot.Panel]:
        for column in table.columns(self.run.streams):
            bars = [
                plot.Bar(
                    result.subject.name, value, result.subject.is_ours, self._over_best(result, column.metric)
                )
                for result in self._peers
                if (value := result.median(column.metric)) is not None
            ]
            if column.ratio and bars:
                yield plot.Panel(column.title, bars, self._bounds_of(column.metric))

    def _over_best(self, result: Result, metric: str) -> str:
        best = best_peer(self._peers, result, metric) if result.subject.is_ours else None
        value = None if best is None else ratio(result, best, metric)
        return "" if value is None else f"({value:.2f} ×)"

    def _bounds_of(self, metric: str) -> dict[str, float]:
        """What the machine's bounds would allow MindPort in each format."""
        found = {}
        for result in self._peers:
            read, fma = result.median("read_gb_s"), result.median("fma_gflop_s")
            if read and metric == "decode_per_s":
                found[result.subject.name] = read * 1e9 / result.subject.weight_bytes
            if fma and metric == "prefill_per_s" and result.subject.width == 32:
                found[result.subject.name] = fma * 1e9 / goals.token_flop(self.shape)
        return found

    def _data(self) -> dict[str, object]:
        return {
            "command": self.run.command,
            "date": self.run.date,
            "machine": dict(self.run.machine),
            "model": asdict(self.shape),
            "goals": [{**asdict(goal), "met": goal.is_met} for goal in self.goals],
            "visits": [visit.to_data() for visit in self.visits],
        }


def _bounds_line(visits: Sequence[Visit]) -> Iterator[str]:
    """How far the bounds moved during the run."""
    known = [bounds for visit in visits if (bounds := Bounds.from_values(visit.values))]
    if known:
        read, fma, int8 = (
            f"{min(values):.0f} to {max(values):.0f}"
            for values in zip(*((b.read_gb_s, b.fma_gflop_s, b.int8_gb_s) for b in known), strict=True)
        )
        yield f"bounds: {read} GB/s read, {fma} GFLOP/s float32, {int8} GB/s int8 matrix times vector"


def between_marks(page: str, content: str) -> str:
    """The page with what is between its marks replaced. Raises ``EngineError``."""
    if page.count(_BEGIN) != 1 or page.count(_END) != 1:
        raise EngineError("a page of docs/ has no place for results: its marks are missing")
    pattern = re.escape(_BEGIN) + ".*?" + re.escape(_END)
    return re.sub(pattern, lambda _: f"{_BEGIN}\n\n{content}\n{_END}", page, flags=re.DOTALL)
