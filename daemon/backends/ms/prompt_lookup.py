"""Guesses the next tokens of a sequence: what followed the last time that its latest tokens occurred."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

_SIZES = (3, 2)
"""Of the n-grams that are looked up, longest first."""
_LONGEST_PAUSE = 16
"""Tokens without a guess, after guesses that failed."""


class PromptLookup:
    """Of one sequence. Guesses more after it was right, and pauses after it was wrong."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = most
        self._pause = 0
        self._silent_until = 0
        self._followers: dict[tuple[int, ...], int] = {}
        """Where the token after an n-gram stands, the last time it occurred."""
        self._indexed = 0

    def guess(self, token_ids: Tokens[int], most: int) -> tuple[int, ...]:
        """Tokens that may come next; perhaps none."""
        length = min(self._length, most)
        if length < 1 or len(token_ids) < self._silent_until:
            return ()
        self._index(token_ids)
        for size in _SIZES:
            position = self._followers.get(tuple(token_ids[-size:]))
            if position is not None:
                return _continued(token_ids, position, length)
        return ()

    def learn(self, guessed: int, right: int, tokens: int) -> None:
        """So many of the guessed tokens were right; the sequence has now ``tokens``."""
        self._length = min(self._most, max(1, 2 * right))
        self._pause = 0 if right else min(_LONGEST_PAUSE, 2 * self._pause + 1)
        self._silent_until = tokens + self._pause if guessed else 0

    def _index(self, token_ids: Tokens[int]) -> None:
        for position in range(max(self._indexed, 1), len(token_ids)):
            for size in _SIZES:
                if position >= size:
                    self._followers[tuple(token_ids[position - size : position])] = position
        self._indexed = len(token_ids)


def _continued(token_ids: Tokens[int], position: int, length: int) -> tuple[int, ...]:
    """From ``position`` on; what reaches the end goes round, as in text that repeats itself."""
    period = len(token_ids) - position
    return tuple(token_ids[position + index % period] for index in range(length))
