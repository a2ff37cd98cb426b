"""How long steps take, learned from the steps themselves, and the room that this leaves for prompts."""

from __future__ import annotations

import bisect
import statistics
from collections import deque
from collections.abc import Sequence

_LEAST_ROWS = 2
"""Of prompts, whatever they cost: a prompt must come to an end."""
_GROWTH = 1.25
"""Beyond the most rows whose cost is known."""
_REMEMBERED = 65
"""Steps without prompts; their median counts. Answers grow while a prompt is read, as would the limit."""
_REFRESHED = 16
"""Steps with prompts after which one goes without, to see how long such a step takes now."""
_OWN, _OTHERS = 0.3, 0.4
"""Of a step's error, what corrects the cost of its own number of rows, and that of any."""
_FADING = 0.9995
"""Of costs with each step: one that an accident made too high is tried again some day."""
_LARGEST = 0.5
"""Error that is believed."""
_FIRST_ERROR, _STEADINESS, _ERRORS = 0.08, 0.1, 2.5
"""Mean error to begin with, weight of the latest, and how many are allowed for: 1 in 100 is larger."""


class Pace:
    """Chooses chunks of prompts: 99 of 100 steps take at most ``slowdown`` times as long as before them."""

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._alone: dict[int, deque[float]] = {}
        """Seconds of the latest steps without prompts, by their rows."""
        self._rows: list[int] = []
        self._added: list[float] = []
        """Seconds that so many rows of prompts add to a step. Both ascend; kernels make leaps."""
        self._error = _FIRST_ERROR
        """Running mean of errors, as shares of what was expected."""
        self._since_alone = 0

    def observe(self, answer_rows: int, prompt_rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if not prompt_rows:
            self._alone.setdefault(answer_rows, deque(maxlen=_REMEMBERED)).append(seconds)
            self._since_alone = 0
        elif not self._rows:
            self._learn(prompt_rows, max(0.0, seconds - self._without_prompts(answer_rows)))
        elif answer_rows:
            self._since_alone += 1
            self._correct(answer_rows, prompt_rows, seconds)

    def room(self, answer_rows: int) -> int:
        """Rows of prompts that may join a step with so many rows of answers; now and then none."""
        if self._since_alone >= _REFRESHED:
            return 0
        alone = self._without_prompts(answer_rows)
        limit = self._slowdown * alone / (1 + _ERRORS * self._error)
        return max(_LEAST_ROWS, self._rows_within(limit - alone))

    def _correct(self, answer_rows: int, prompt_rows: int, seconds: float) -> None:
        """Rows grow dearer along a prompt, and others use the machine: one size tells of all."""
        added = self._added_by(prompt_rows)
        expected = self._without_prompts(answer_rows) + added
        error = min(_LARGEST, max(-_LARGEST, seconds / expected - 1)) if expected else 0.0
        self._error += _STEADINESS * (abs(error) - self._error)
        self._added = [known * (1 + _OTHERS * error) * _FADING for known in self._added]
        self._learn(prompt_rows, max(0.0, added + _OWN * error * expected))

    def _learn(self, rows: int, added: float) -> None:
        """More rows take longer: what is known otherwise is out of date."""
        known = list(zip(self._rows, self._added, strict=True))
        fewer = [pair for pair in known if pair[0] < rows and pair[1] < added]
        more = [pair for pair in known if pair[0] > rows and pair[1] > added]
        together = [*fewer, (rows, added), *more]
        self._rows = [pair[0] for pair in together]
        self._added = [pair[1] for pair in together]

    def _added_by(self, rows: int) -> float:
        return _interpolate(rows, [0, *self._rows], [0.0, *self._added])

    def _rows_within(self, seconds: float) -> int:
        if not self._rows or seconds <= 0:
            return 0
        rows = _interpolate(seconds, [0.0, *self._added], [0, *self._rows])
        return int(min(rows, _GROWTH * self._rows[-1] + 1))

    def _without_prompts(self, rows: int) -> float:
        """As measured for that many rows, or else for the nearest number of them."""
        if not self._alone or not rows:
            return 0.0
        return statistics.median(self._alone[min(self._alone, key=lambda size: abs(size - rows))])


def _interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Between the neighbours of a positive ``x``; beyond the last in proportion to it."""
    after = bisect.bisect_left(xs, x)
    if after == len(xs):
        return ys[-1] * x / xs[-1] if xs[-1] else ys[-1]
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return ys[after - 1] + share * (ys[after] - ys[after - 1])
