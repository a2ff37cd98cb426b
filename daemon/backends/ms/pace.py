"""What a step costs by its rows, learned from the steps themselves, and the room this leaves for prompts."""

from __future__ import annotations

import bisect

_LEAST_ROWS = 8
"""Of prompts, whatever they cost: a prompt must come to an end."""
_WEIGHT = 0.3
"""Of the latest step in the running mean."""


class Pace:
    """Chooses chunks of prompts so that a step takes at most ``slowdown`` times as long as without them."""

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._sizes: list[int] = []
        """Numbers of rows that have been measured, ascending."""
        self._seconds: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        size = _rounded(rows)
        if size not in self._seconds:
            bisect.insort(self._sizes, size)
            self._seconds[size] = seconds
        self._seconds[size] += _WEIGHT * (seconds - self._seconds[size])

    def room(self, rows: int) -> int:
        """Rows of prompts that may join a step with ``rows`` rows of answers."""
        limit = self._slowdown * self._cost(rows)
        low, high = rows + _LEAST_ROWS, 2 * (rows + _LEAST_ROWS)
        while self._sizes and high < 2 * self._sizes[-1] and self._cost(high) <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._cost(middle) <= limit else (low, middle)
        return max(_LEAST_ROWS, _rounded(low) - rows)

    def _cost(self, rows: int) -> float:
        """Measured, or on the line between the nearest measurements; beyond them in proportion to rows."""
        if not self._sizes:
            return float(rows)
        index = bisect.bisect_left(self._sizes, rows)
        if index == len(self._sizes):
            return self._seconds[self._sizes[-1]] * rows / self._sizes[-1]
        above = self._sizes[index]
        if above == rows or index == 0:
            return self._seconds[above]
        below = self._sizes[index - 1]
        share = (rows - below) / (above - below)
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])


def _rounded(rows: int) -> int:
    """Down to four significant bits, so that few sizes occur and each is measured often."""
    return rows - rows % (1 << max(0, rows.bit_length() - 4))
