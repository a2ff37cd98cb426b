"""Prompts as token ids: unique, so that no prompt cache answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.synthetic import FIRST_WORD


class Prompts:
    """An endless supply; the same seed gives every engine the same prompts."""

    def __init__(self, vocab: int, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._vocab = vocab

    def one(self, length: int) -> list[int]:
        ids: list[int] = self._generator.integers(FIRST_WORD, self._vocab, length).tolist()
        return ids

    def many(self, count: int, length: int) -> list[list[int]]:
        return [self.one(length) for _ in range(count)]


def agreement(expected: list[list[str]], got: list[list[str]]) -> tuple[int, int]:
    """Tokens up to the first difference of each answer, and tokens in total."""
    same = sum(_common(want, have) for want, have in zip(expected, got, strict=True))
    return same, sum(len(want) for want in expected)


def _common(want: list[str], have: list[str]) -> int:
    return next((index for index, pair in enumerate(_pairs(want, have)) if pair[0] != pair[1]), len(want))


def _pairs(want: list[str], have: list[str]) -> Iterator[tuple[str, str | None]]:
    for index, token in enumerate(want):
        yield token, have[index] if index < len(have) else None
