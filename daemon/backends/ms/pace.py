"""How long steps take, learned from the steps themselves, and the room that this leaves for prompts."""

from __future__ import annotations

import bisect

_LEAST_ROWS = 2
"""Of prompts, whatever they cost: a prompt must come to an end."""
_WEIGHT = 0.3
"""Of the latest step in the running means."""


class Pace:
    """Chooses chunks of prompts so that a step takes at most ``slowdown`` times as long as without them."""

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._sizes: list[int] = []
        """Numbers of answers whose steps were measured without prompts, ascending."""
        self._seconds: dict[int, float] = {}
        self._row_s: float | None = None
        """What one more row of a prompt costs. It grows along a long prompt, so only the latest matter."""

    def observe(self, answer_rows: int, prompt_rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if prompt_rows:
            row_s = max(0.0, seconds - self._without_prompts(answer_rows)) / prompt_rows
            self._row_s = _mean(self._row_s, row_s)
            return
        if answer_rows not in self._seconds:
            bisect.insort(self._sizes, answer_rows)
        self._seconds[answer_rows] = _mean(self._seconds.get(answer_rows), seconds)

    def room(self, answer_rows: int) -> int:
        """Rows of prompts that may join a step with so many rows of answers."""
        if not self._row_s:
            return _LEAST_ROWS
        rows = (self._slowdown - 1.0) * self._without_prompts(answer_rows) / self._row_s
        return max(_LEAST_ROWS, int(min(rows, 1e6)))

    def _without_prompts(self, rows: int) -> float:
        """As measured for that many rows, or else for the nearest number of them."""
        if not self._sizes or not rows:
            return 0.0
        index = min(bisect.bisect_left(self._sizes, rows), len(self._sizes) - 1)
        below = self._sizes[max(0, index - 1)]
        nearest = min(self._sizes[index], below, key=lambda size: abs(size - rows))
        return self._seconds[nearest]


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
