"""Chooses the next token of each sequence from its row of logits.

Greedy rows are one argmax over the batch. Any other row is chosen from its own logits and random numbers
only, so that a seed gives the same answer whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.backends.base import TokenChoice, TokenSampling
from daemon.backends.ms.logprobs import Logits, choices, largest
from daemon.backends.ms.sequence import Sequence

Tokens = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

_GREEDY_BELOW = 1e-5
"""A temperature that is zero for all purposes, and would overflow as a divisor."""
_FEW = 64
"""Candidates for top-p that are looked at before all are."""
_BINS = 1024
_BINS_PER_NAT = 32
"""Logits are binned by their distance from the best; the last bin takes all that weighs nothing."""


@dataclass(frozen=True, slots=True)
class Sampled:
    token_id: int
    choice: TokenChoice | None
    """When log-probabilities were asked for."""


def sample(
    logits: Logits, sequences: list[Sequence], likeliest: Tokens | None = None
) -> list[Sampled | None]:
    """One row a sequence; ``None`` where the row is not finite, which makes any choice meaningless.

    ``likeliest``: the token with the largest logit of each row, where that is known.
    """
    adjusted = _adjust(logits, sequences)
    known = likeliest if adjusted is logits else None
    tokens = adjusted.argmax(axis=1) if known is None else known.copy()
    # A row that is not finite begins with NaN; argmax takes the first NaN for the largest value.
    finite = np.isfinite(adjusted[np.arange(len(tokens)), tokens]) & np.isfinite(logits[:, 0])
    for index in np.flatnonzero(finite):
        sequence = sequences[index]
        if not is_greedy(sequence.sampling):
            best = float(adjusted[index, tokens[index]])
            tokens[index] = draw(adjusted[index], best, sequence.sampling, sequence.random.random())
    wanted = [i for i in np.flatnonzero(finite) if sequences[i].sampling.logprobs is not None]
    reported = _report(logits, tokens, sequences, wanted)
    return [
        Sampled(int(token), reported.get(index)) if finite[index] else None
        for index, token in enumerate(tokens)
    ]


def is_greedy(sampling: TokenSampling) -> bool:
    return sampling.temperature < _GREEDY_BELOW or sampling.top_k == 1


def draw(row: Logits, best: float, sampling: TokenSampling, uniform: float) -> int:
    """A token by temperature, then top-k, then top-p. ``best`` is the row's maximum."""
    temperature = sampling.temperature
    if sampling.top_k > 0:
        ids = largest(row, sampling.top_k)
        weights = _weights(row[ids].astype(np.float64), best, temperature)
        mass = weights.cumsum()
        return int(ids[_pick(mass, sampling.top_p * mass[-1], uniform)])
    weights = _weights(row, best, temperature)
    if sampling.top_p >= 1.0:
        mass = weights.cumsum(dtype=np.float64)
        return _pick(mass, mass[-1], uniform)
    threshold = sampling.top_p * float(weights.sum(dtype=np.float64))
    ids = largest(row, _FEW)
    mass = weights[ids].cumsum(dtype=np.float64)
    if mass[-1] >= threshold:
        return int(ids[_pick(mass, threshold, uniform)])
    return _draw_from_many(weights, threshold, uniform)


def _draw_from_many(weights: Floats, threshold: float, uniform: float) -> int:
    """As from a sorted row, without sorting it: only the bins are sorted where something is decided."""
    depth = -np.log(np.maximum(weights, np.finfo(np.float32).tiny)) * _BINS_PER_NAT
    bins = np.minimum(depth, _BINS - 1).astype(np.int64)
    mass = np.bincount(bins, weights=weights, minlength=_BINS).cumsum()
    last = min(int(np.searchsorted(mass, threshold)), _BINS - 1)
    before = float(mass[last - 1]) if last else 0.0
    ids, within = _sorted_bin(weights, bins, last)
    kept = _kept(before + within, threshold)
    wanted = uniform * float(before + within[kept - 1])
    if wanted >= before:
        return int(ids[_find(before + within[:kept], wanted)])
    chosen = int(np.searchsorted(mass[:last], wanted, side="right"))
    ids, within = _sorted_bin(weights, bins, chosen)
    return int(ids[_find(within, wanted - (float(mass[chosen - 1]) if chosen else 0.0))])


def _sorted_bin(weights: Floats, bins: NDArray[np.int64], which: int) -> tuple[NDArray[np.intp], Floats]:
    """The tokens of a bin, likeliest first, and their cumulative mass."""
    ids = np.flatnonzero(bins == which)
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    return ids, weights[ids].cumsum(dtype=np.float64)


def _weights(values: Floats, best: float, temperature: float) -> Floats:
    """Unnormalised probabilities, in the precision of the values."""
    weights: Floats = np.exp((values - best) / temperature)
    return weights


def _pick(mass: NDArray[np.float64], threshold: float, uniform: float) -> int:
    """Inverse of the cumulative mass, of the fewest candidates whose mass reaches the threshold."""
    kept = _kept(mass, threshold)
    return _find(mass[:kept], uniform * mass[kept - 1])


def _kept(mass: Floats, threshold: float) -> int:
    return min(int(np.searchsorted(mass, threshold)) + 1, len(mass))


def _find(mass: Floats, wanted: float) -> int:
    return min(int(np.searchsorted(mass, wanted, side="right")), len(mass) - 1)


def _adjust(logits: Logits, sequences: list[Sequence]) -> Logits:
    """Penalties and masks. The rows themselves are copied only where there is one."""
    adjusted = logits
    for index, sequence in enumerate(sequences):
        masked = _masked_ids(sequence, logits.shape[1])
        penalised = _is_penalised(sequence.sampling)
        if not masked and not penalised:
            continue
        if adjusted is logits:
            adjusted = logits.copy()
        if penalised:
            _penalise(adjusted[index], sequence)
        adjusted[index, masked] = -np.inf
    return adjusted


def _masked_ids(sequence: Sequence, vocab_size: int) -> list[int]:
    """End and stop tokens, before the least length."""
    sampling = sequence.sampling
    if sequence.answer_len >= sampling.min_tokens:
        return []
    return [token for token in sampling.stop_token_ids if 0 <= token < vocab_size]


def _is_penalised(sampling: TokenSampling) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def _penalise(row: Logits, sequence: Sequence) -> None:
    """Repetition counts prompt and answer, presence and frequency the answer alone."""
    sampling = sequence.sampling
    ids, counts = np.unique(np.array(sequence.answer, dtype=np.int64), return_counts=True)
    if sampling.repetition_penalty != 1.0:
        seen = np.union1d(sequence.prompt_vocabulary, ids)
        values = row[seen]
        penalty = np.float32(sampling.repetition_penalty)
        row[seen] = np.where(values > 0, values / penalty, values * penalty)
    row[ids] -= (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)


def _report(
    logits: Logits, tokens: NDArray[np.intp], sequences: list[Sequence], wanted: list[int]
) -> dict[int, TokenChoice]:
    """Log-probabilities of the rows that want them; rows that want equally many alternatives go together."""
    reported: dict[int, TokenChoice] = {}
    for top in {sequences[index].sampling.logprobs or 0 for index in wanted}:
        rows = [index for index in wanted if (sequences[index].sampling.logprobs or 0) == top]
        found = choices(logits[rows], [int(tokens[index]) for index in rows], top)
        reported.update(zip(rows, found, strict=True))
    return reported
