"""The sampler against plain definitions, one row at a time, sorted in full."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.backends.base import TokenSampling
from daemon.backends.ms.logprobs import choices, largest
from daemon.backends.ms.sampler import draw, sample
from daemon.backends.ms.sequence import Sequence
from tests.fakes_engine import request

Row = npt.NDArray[np.float32]


def sequence(prompt: list[int] | None = None, answer: list[int] | None = None, **sampling: Any) -> Sequence:
    made = Sequence(1, request(prompt or [0], **sampling), (1.0, 1.0))
    made.token_ids += answer or []
    return made


def random_row(seed: int, width: int = 500) -> Row:
    return np.random.default_rng(seed).normal(0, 2, width).astype(np.float32)


def plain_probabilities(row: Row, sampling: TokenSampling) -> npt.NDArray[np.float64]:
    """Temperature, top-k, top-p as their papers say."""
    scaled = row.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k > 0:
        scaled[order[sampling.top_k :]] = -np.inf
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= sampling.top_p]] = 0.0
    normalised: npt.NDArray[np.float64] = probabilities / probabilities.sum()
    return normalised


def one(row: Row, made: Sequence) -> int:
    (sampled,) = sample(row[None], [made])
    assert sampled is not None
    return sampled.token_id


def test_greedy_is_argmax_of_every_row() -> None:
    logits = np.stack([random_row(seed) for seed in range(5)])
    sampled = sample(logits, [sequence() for _ in range(5)])
    assert [s.token_id for s in sampled if s] == logits.argmax(axis=1).tolist()
    assert all(s is not None and s.choice is None for s in sampled)


def test_likeliest_tokens_that_are_known_are_not_looked_for_but_where_logits_change() -> None:
    logits = np.stack([random_row(seed) for seed in range(3)])
    known = np.array([4, 5, 6])
    assert [s.token_id for s in sample(logits, [sequence() for _ in range(3)], known) if s] == [4, 5, 6]
    assert known.tolist() == [4, 5, 6]
    masked = [sequence(), sequence(min_tokens=1, stop_token_ids=[int(logits[1].argmax())]), sequence()]
    second = int(np.argsort(logits[1])[-2])
    expected = [int(logits[0].argmax()), second, int(logits[2].argmax())]
    assert [s.token_id for s in sample(logits, masked, known) if s] == expected


def test_a_row_that_is_not_finite_is_known_by_its_beginning_even_where_that_is_masked() -> None:
    logits = np.stack([random_row(1), random_row(2)])
    logits[0, 0] = np.nan
    masked = sequence(min_tokens=1, stop_token_ids=[0])
    broken, sound = sample(logits, [masked, sequence()])
    assert broken is None
    assert sound is not None


def test_top_k_of_one_is_greedy_at_any_temperature() -> None:
    row = random_row(1)
    assert one(row, sequence(temperature=5.0, top_k=1)) == row.argmax()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.6},
        {"temperature": 3.0, "top_p": 0.999},
    ],
)
def test_samples_are_distributed_as_defined(sampling: dict[str, Any]) -> None:
    row, draws = random_row(3, 60), 20_000
    resolved = TokenSampling(max_tokens=1, **sampling)
    expected = plain_probabilities(row, resolved)
    uniforms = np.random.default_rng(0).random(draws)
    tokens = [draw(row, float(row.max()), resolved, uniform) for uniform in uniforms]
    counts = np.bincount(tokens, minlength=60)
    assert not counts[expected == 0].any()
    seen = expected * draws >= 5
    chi_squared = ((counts - expected * draws)[seen] ** 2 / (expected * draws)[seen]).sum()
    assert chi_squared < 2 * seen.sum() + 20


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 3000),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_drawn_token_is_always_allowed(
    seed: int, width: int, top_k: int, top_p: float, uniform: float
) -> None:
    row = random_row(seed, width)
    sampling = TokenSampling(max_tokens=1, temperature=1.0, top_k=top_k, top_p=top_p)
    token = draw(row, float(row.max()), sampling, uniform)
    # A threshold met to the last bit may fall on either side.
    looser = TokenSampling(max_tokens=1, temperature=1.0, top_k=top_k, top_p=min(1.0, top_p + 1e-5))
    assert plain_probabilities(row, looser)[token] > 0


def test_masked_tokens_are_never_drawn() -> None:
    row = np.full(40, -np.inf, np.float32)
    row[[3, 7]] = 1.0
    kinds: list[dict[str, Any]] = [{}, {"top_k": 10}, {"top_p": 0.9}]
    for sampling in kinds:
        resolved = TokenSampling(max_tokens=1, temperature=1.0, **sampling)
        drawn = {draw(row, 1.0, resolved, uniform) for uniform in np.linspace(0, 0.999, 50)}
        assert drawn == {3, 7}


def test_seed_gives_the_same_answer_in_any_batch() -> None:
    rows = np.stack([random_row(seed) for seed in range(6)])
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "seed": 42}
    alone = sequence(**options)
    expected = [one(row, alone) for row in rows]
    batched = sequence(**options)
    got = []
    for step, row in enumerate(rows):
        others = [sequence(temperature=0.5, top_k=3), sequence(), sequence(temperature=2.0)][: step % 4]
        logits = np.stack([*[random_row(99 + i) for i in range(len(others))], row])
        (*_, last) = sample(logits, [*others, batched])
        assert last is not None
        got.append(last.token_id)
    assert got == expected
    assert expected != [one(row, sequence(temperature=1.0, top_p=0.95, seed=43)) for row in rows]


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    row = np.array([2.0, -1.0, 1.5, 1.4, 0.0], np.float32)
    assert one(row, sequence([0], repetition_penalty=1.2)) == 0
    assert one(row, sequence([0], repetition_penalty=1.5)) == 2
    assert one(row, sequence([0], [2], repetition_penalty=1.5)) == 3
    assert row[0] == 2.0
    negative = np.array([-1.0, -1.1], np.float32)
    assert one(negative, sequence([0], repetition_penalty=1.2)) == 1


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    row = np.array([2.0, 1.9, 1.0], np.float32)
    assert one(row, sequence([0], presence_penalty=0.5)) == 0
    assert one(row, sequence([2], [0], presence_penalty=0.5)) == 1
    assert one(row, sequence([2], [0, 0, 0, 1], presence_penalty=0.5)) == 0
    assert one(row, sequence([2], [0, 0, 0, 1], frequency_penalty=0.5)) == 1


def test_stop_tokens_are_masked_before_the_least_length() -> None:
    row = np.array([3.0, 2.0, 1.0], np.float32)
    options: dict[str, Any] = {"min_tokens": 2, "stop_token_ids": (0, 1, 999)}
    assert one(row, sequence([5], [2], **options)) == 2
    assert one(row, sequence([5], [2, 2], **options)) == 0


def test_row_that_is_not_finite_yields_nothing_and_spares_the_others() -> None:
    rows = np.stack([random_row(seed) for seed in range(4)])
    rows[1, 17] = np.nan
    rows[2, 3] = np.inf
    kinds: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"repetition_penalty": 1.1, "logprobs": 2}]
    for options in kinds:
        sampled = sample(rows, [sequence(**options) for _ in range(4)])
        assert [s is None for s in sampled] == [False, True, True, False]


def test_log_probabilities_are_of_raw_logits() -> None:
    row = random_row(5)
    exact = row.astype(np.float64)
    log_softmax = exact - np.log(np.exp(exact).sum())
    made = sequence([1, 2, 3], temperature=0.3, repetition_penalty=1.3, logprobs=4, seed=1)
    quiet = sequence()
    first, second = sample(np.stack([row, row]), [made, quiet])
    assert first is not None
    assert second is not None
    assert second.choice is None
    choice = first.choice
    assert choice is not None
    assert choice.token_id == first.token_id
    assert choice.logprob == pytest.approx(log_softmax[first.token_id], abs=1e-5)
    order = np.argsort(-exact, kind="stable")[:4]
    assert [token for token, _ in choice.top] == order.tolist()
    assert [value for _, value in choice.top] == pytest.approx(log_softmax[order], abs=1e-5)


def test_no_alternatives_is_the_token_alone() -> None:
    (choice,) = choices(random_row(1)[None], [7], 0)
    assert (choice.token_id, choice.top) == (7, ())


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=3000),
    count=st.integers(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_largest_equals_a_full_sort(values: list[int], count: int) -> None:
    row = np.array(values, np.float32)
    assert largest(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    width=st.integers(100, 4000),
    scale=st.sampled_from([0.0, 1e-3, 0.5, 3.0]),
    top_p=st.floats(0.05, 0.9999),
    uniform=st.floats(0.0, 0.999999),
)
def test_flat_rows_are_drawn_from_as_if_they_were_sorted(
    seed: int, width: int, scale: float, top_p: float, uniform: float
) -> None:
    row = (np.random.default_rng(seed).standard_normal(width) * scale).astype(np.float32)
    sampling = TokenSampling(max_tokens=1, temperature=1.0, top_p=top_p)
    token = draw(row, float(row.max()), sampling, uniform)
    weights = np.exp(row.astype(np.float64))
    # Logits that differ may weigh the same in single precision: then the earlier token comes first.
    order = np.argsort(-np.exp(row - row.max()), kind="stable")
    mass = weights[order].cumsum() / weights.sum()
    kept = mass[: int(np.searchsorted(mass, top_p)) + 1]
    place = int(np.flatnonzero(order == token)[0])
    below = kept[place - 1] if place else 0.0
    assert below - 1e-5 <= uniform * kept[-1] <= mass[place] + 1e-5
    assert place <= len(kept)
