"""Guesses come from what was said before, and only where it pays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.backends.ms.prompt_lookup import PromptLookup


def test_what_followed_the_longest_match_is_guessed() -> None:
    lookup = PromptLookup(3)
    assert lookup.guess([1, 2, 3, 4, 5, 9, 2, 3, 7, 1, 2, 3], 8) == (4, 5, 9)


def test_the_latest_occurrence_wins() -> None:
    assert PromptLookup(1).guess([1, 2, 5, 1, 2, 6, 1, 2], 8) == (6,)


def test_nothing_is_guessed_without_a_match_or_room() -> None:
    lookup = PromptLookup(4)
    assert lookup.guess([1, 2, 3, 4], 8) == ()
    assert lookup.guess([7], 8) == ()
    assert lookup.guess([1, 2, 1, 2], 0) == ()
    assert lookup.guess([1, 2, 1, 2], -3) == ()


def test_a_repetition_goes_on_beyond_its_end() -> None:
    assert PromptLookup(7).guess([8, 1, 2, 1, 2, 1], 7) == (2, 1, 2, 1, 2, 1, 2)


def test_wrong_guesses_shrink_and_pause_and_right_ones_grow() -> None:
    tokens = [1, 2] * 20
    lookup = PromptLookup(8)
    assert len(lookup.guess(tokens, 8)) == 8
    lookup.learn(8, 2, len(tokens))
    assert len(lookup.guess(tokens, 8)) == 4
    lookup.learn(4, 0, len(tokens))
    assert lookup.guess(tokens, 8) == ()
    assert len(lookup.guess([*tokens, 1], 8)) == 1
    lookup.learn(1, 1, len(tokens) + 1)
    assert len(lookup.guess([*tokens, 1], 8)) == 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_indexing_piece_by_piece_finds_the_same(tokens: list[int], most: int) -> None:
    grown = PromptLookup(most)
    for end in range(1, len(tokens)):
        grown.guess(tokens[:end], most)
    assert grown.guess(tokens, most) == PromptLookup(most).guess(tokens, most)
