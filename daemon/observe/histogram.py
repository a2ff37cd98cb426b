"""A histogram that costs one bisection an observation: streams observe thousands of values a second."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts per bucket; ``bounds`` are the buckets' upper ends, the last bucket has none."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += weight
        self.total += value * weight

    @property
    def count(self) -> int:
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' form: for each bound the count of values up to it, then ``+Inf``."""
        pairs: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip(self._bounds, self._counts, strict=False):
            running += count
            pairs.append((f"{bound:g}" if bound < 1e6 else str(bound), running))
        pairs.append(("+Inf", running + self._counts[-1]))
        return pairs
