"""Log-probabilities of chosen tokens and their rivals, from raw logits: before penalties and temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daemon.backends.base import TokenChoice

Logits = NDArray[np.float32]

_STRIPES = 32


def largest(row: Logits, count: int) -> NDArray[np.intp]:
    """Ids of the ``count`` largest values, largest first, equal ones by id. The row has no NaN."""
    width = len(row)
    count = min(count, width)
    columns = width // _STRIPES
    if columns >= 4 * count:
        # The count-th largest of column maxima bounds the count-th largest of all from below: far cheaper
        # than a partition of the row, and only a few more candidates.
        maxima = row[: columns * _STRIPES].reshape(_STRIPES, columns).max(axis=0)
        bound = np.partition(maxima, columns - count)[columns - count]
    else:
        bound = np.partition(row, width - count)[width - count]
    ids = np.flatnonzero(row >= bound)
    order = np.argsort(-row[ids], kind="stable")
    return np.asarray(ids[order[:count]])


def choices(logits: Logits, tokens: list[int], top: int) -> list[TokenChoice]:
    """One row and one chosen token each, with the ``top`` likeliest tokens. Rows are finite."""
    best = logits.max(axis=1)
    mass = np.exp(logits - best[:, None]).sum(axis=1, dtype=np.float64)
    norms = best + np.log(mass)
    return [
        TokenChoice(token_id=token, logprob=float(row[token] - norm), top=_rivals(row, float(norm), top))
        for row, norm, token in zip(logits, norms, tokens, strict=True)
    ]


def _rivals(row: Logits, norm: float, count: int) -> tuple[tuple[int, float], ...]:
    if count < 1:
        return ()
    return tuple((int(token), float(row[token]) - norm) for token in largest(row, count))
