"""What was measured, as plain data: an engine with one weight format, and what a visit to it gave."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "mindport"
IDLE = "idle"
"""The variant that holds a model of almost no size."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine with one weight format."""

    engine: str
    format: str
    bits: float
    """Of most weights, scales included."""
    weight_bytes: float
    """What one decoded token reads."""
    detail: str = ""
    """Version and build."""
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.format}" + (f", {self.variant}" if self.variant else "")

    @property
    def width(self) -> int:
        """32, 16, 8 or 4: engines of equal width are compared."""
        return round(self.bits)

    @property
    def is_ours(self) -> bool:
        return self.engine == OURS


@dataclass(slots=True)
class Visit:
    """One engine, started, measured and stopped again: what is kept of it."""

    part: str
    round: int
    subject: Subject
    values: dict[str, float] = field(default_factory=dict)
    """Metric to value."""
    greedy: list[list[str]] = field(default_factory=list)
    problem: str = ""
    """Why it has no figures, or not all of them."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.part, self.subject.name, self.round

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Visit:
        """Raises ``KeyError`` or ``TypeError`` when it is something else."""
        return cls(**{**data, "subject": Subject(**data["subject"])})


@dataclass(slots=True)
class Result:
    """All visits to one subject."""

    subject: Subject
    visits: list[Visit] = field(default_factory=list)

    def by_round(self, metric: str) -> dict[int, float]:
        return {visit.round: visit.values[metric] for visit in self.visits if metric in visit.values}

    def median(self, metric: str) -> float | None:
        values = self.by_round(metric).values()
        return statistics.median(values) if values else None

    @property
    def greedy(self) -> list[list[str]]:
        return next((visit.greedy for visit in self.visits if visit.greedy), [])

    @property
    def problem(self) -> str:
        return next((visit.problem for visit in self.visits if visit.problem), "")

    @property
    def has_figures(self) -> bool:
        return any(visit.values for visit in self.visits)


def results_of(visits: Iterable[Visit], part: str) -> list[Result]:
    """The results of one part of the run, in the order in which they were first visited."""
    found: dict[str, Result] = {}
    for visit in visits:
        if visit.part == part:
            found.setdefault(visit.subject.name, Result(visit.subject)).visits.append(visit)
    return list(found.values())


def ratio(ours: Result, peer: Result, metric: str) -> float | None:
    """The median of the rounds' ratios, of rounds that have both."""
    mine, theirs = ours.by_round(metric), peer.by_round(metric)
    values = [mine[number] / theirs[number] for number in mine if theirs.get(number)]
    return statistics.median(values) if values else None


def best_peer(results: Sequence[Result], ours: Result, metric: str) -> Result | None:
    """The fastest engine of equal width that is not ours."""
    peers = [
        result
        for result in results
        if not result.subject.is_ours
        and result.subject.width == ours.subject.width
        and result.median(metric) is not None
    ]
    return max(peers, key=lambda peer: peer.median(metric) or 0.0, default=None)
