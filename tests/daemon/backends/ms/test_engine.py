"""The engine over a toy model whose every wrong block, position or base shows in the tokens."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.faults import Fault, FaultKind
from daemon.backends.base import TokenEvent, TokenRequest
from daemon.backends.sinks import merge
from tests.daemon.backends.ms.engine_harness import Harness, submit_all
from tests.fakes_engine import FakeRunner, request, toy_answer, toy_row


def test_one_request_equals_the_oracle() -> None:
    harness, asked = Harness(), request([1, 2, 3], 10)
    harness.engine.submit(1, asked)
    harness.run()
    event = harness.answer(1)
    assert event.token_ids == toy_answer(asked)
    assert event.finish == "length"
    assert len(harness.outcomes[1]) == 10


def test_stop_token_ends_the_answer() -> None:
    asked = request([1, 2, 3], 30)
    stop = toy_answer(asked)[4]
    asked = request([1, 2, 3], 30, stop_token_ids=(stop,))
    harness = Harness()
    harness.engine.submit(1, asked)
    harness.run()
    event = harness.answer(1)
    assert event.token_ids == toy_answer(asked)
    assert (event.token_ids[-1], event.finish) == (stop, "stop")


def test_context_ends_the_answer() -> None:
    harness = Harness(context_len=12)
    harness.engine.submit(1, request([1] * 8, 100))
    harness.run()
    assert (len(harness.answer(1).token_ids), harness.answer(1).finish) == (4, "length")


def test_cache_smaller_than_the_context_ends_the_answer() -> None:
    harness = Harness(FakeRunner(num_blocks=3))
    harness.engine.submit(1, request([1] * 8, 100))
    harness.run()
    assert (len(harness.answer(1).token_ids), harness.answer(1).finish) == (4, "length")


def test_no_tokens_wanted_is_only_the_prompt() -> None:
    harness = Harness()
    harness.engine.submit(1, request([1, 2, 3], 0, prompt_logprobs=1))
    harness.run()
    event = harness.answer(1)
    assert (event.token_ids, event.finish) == ([], "length")
    assert [choice.token_id for choice in event.prompt_choices or ()] == [2, 3]


_STORY = [int(token) for token in np.random.default_rng(5).integers(0, 50, 24)]


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Mostly with the same beginning, shorter or longer than where the rotary base changes."""
    return _STORY[: draw(st.integers(0, 24))] + draw(st.lists(st.integers(0, 1), min_size=1, max_size=3))


@st.composite
def workloads(draw: st.DrawFn) -> list[TokenRequest]:
    requests = []
    for prompt in draw(st.lists(prompts(), min_size=1, max_size=8)):
        asked = request(
            prompt,
            draw(st.integers(1, 12)),
            stop_token_ids=(7,) if draw(st.booleans()) else (),
            prompt_logprobs=draw(st.sampled_from([None, None, 0])),
        )
        requests.append(msgspec.structs.replace(asked, priority=draw(st.integers(0, 1))))
    return requests


@settings(max_examples=150, deadline=None)
@given(
    requests=workloads(),
    sizes=st.tuples(st.integers(10, 30), st.integers(4, 24), st.integers(3, 8)),
    prefix_cache=st.booleans(),
    spread=st.integers(0, 3),
    cancelled=st.sets(st.integers(0, 7)),
)
def test_everybody_gets_the_answer_of_someone_alone(
    requests: list[TokenRequest],
    sizes: tuple[int, int, int],
    prefix_cache: bool,
    spread: int,
    cancelled: set[int],
) -> None:
    num_blocks, max_rows, max_logit_rows = sizes
    runner = FakeRunner(num_blocks=num_blocks, max_rows=max_rows, max_logit_rows=max_logit_rows)
    harness = Harness(runner, prefill_slowdown=1.2, prefix_cache=prefix_cache)
    for number, asked in enumerate(requests):
        harness.engine.submit(number, asked)
        for _ in range(spread):
            harness.step()
        if number in cancelled:
            harness.engine.cancel(number)
    harness.run()
    for number, asked in enumerate(requests):
        got, expected = harness.outcomes[number], toy_answer(asked)
        if number in cancelled and (not got or merge(got).finish is None):  # type: ignore[arg-type]
            assert [t for event in got for t in event.token_ids] == expected[: len(got)]  # type: ignore[union-attr]
            continue
        assert harness.answer(number).token_ids == expected
        assert [event.finish is not None for event in got if isinstance(event, TokenEvent)].count(True) == 1
    assert harness.engine.stats.kv_used_fraction == 0.0
    assert harness.given_up == []


@st.composite
def repetitive(draw: st.DrawFn) -> TokenRequest:
    """In a vocabulary of three nearly everything has occurred before: guesses are often right."""
    asked = request(
        draw(st.lists(st.integers(0, 2), min_size=1, max_size=20)),
        draw(st.integers(1, 25)),
        temperature=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        seed=draw(st.integers(0, 5)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        min_tokens=draw(st.integers(0, 6)),
        stop_token_ids=(2,) if draw(st.booleans()) else (),
        logprobs=draw(st.sampled_from([None, 1])),
    )
    return msgspec.structs.replace(asked, priority=draw(st.integers(0, 1)))


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(repetitive(), min_size=1, max_size=6),
    num_blocks=st.integers(12, 40),
    prompt_lookup=st.integers(1, 6),
    prefix_cache=st.booleans(),
    context_len=st.integers(22, 60),
)
def test_guessing_changes_no_token(
    requests: list[TokenRequest], num_blocks: int, prompt_lookup: int, prefix_cache: bool, context_len: int
) -> None:
    answers = []
    for guesses in (0, prompt_lookup):
        runner = FakeRunner(vocab_size=3, num_blocks=num_blocks, max_rows=24)
        options = {"prefix_cache": prefix_cache, "context_len": context_len, "prompt_lookup": guesses}
        harness = Harness(runner, **options)
        submit_all(harness, requests)
        harness.run()
        stats = harness.engine.stats
        assert stats.kv_used_fraction == 0.0
        assert 0 <= stats.right_guesses <= stats.guessed_tokens
        events = [harness.answer(number) for number in range(len(requests))]
        answers.append([(one.token_ids, one.choices, one.finish) for one in events])
    assert answers[0] == answers[1]


def test_right_guesses_save_steps() -> None:
    asked = request([0, 1, 2, 0, 1, 2], 60)
    harness = Harness(Cyclic(), prompt_lookup=4)
    harness.engine.submit(1, asked)
    harness.run()
    assert harness.answer(1).token_ids == [0, 1, 2] * 20
    assert len(harness.runner.steps) == 13
    stats = harness.engine.stats
    assert (stats.guessed_tokens, stats.right_guesses) == (47, 47)


class Cyclic(FakeRunner):
    """0, 1, 2, 0, 1, 2 and so on."""

    def execute(self, segments: Any) -> Any:
        logits = super().execute(segments)
        wanted = [token for segment in segments for token in segment.token_ids[segment.logits_from :]]
        for row, token in zip(logits, wanted, strict=True):
            row[(token + 1) % 3] = 100.0
        return logits


def test_preemption_does_not_change_answers_or_draws() -> None:
    requests = [request([n] * 6, 20, temperature=1.0, seed=n, top_p=0.9) for n in range(4)]
    roomy = Harness(FakeRunner(num_blocks=64))
    tight = Harness(FakeRunner(num_blocks=9))
    for harness in (roomy, tight):
        submit_all(harness, requests)
        harness.run()
    assert roomy.engine.stats.preemptions == 0
    assert tight.engine.stats.preemptions > 0
    for number in range(4):
        assert tight.answer(number).token_ids == roomy.answer(number).token_ids


def test_prefix_is_found_and_counted() -> None:
    harness = Harness()
    shared = [1, 2, 3, 4, 5, 6, 7, 8]
    for number, tail in enumerate(([9], [10], [10, 11])):
        harness.engine.submit(number, request([*shared, *tail][:10], 3))
        harness.run()
    assert [harness.answer(number).cached_tokens for number in range(3)] == [0, 8, 8]
    assert harness.engine.stats.prefix_hit_tokens == 16
    assert harness.engine.stats.prompt_tokens == 9 + 9 + 10
    rows = [sum(len(s.token_ids) for s in step) for step in harness.runner.steps]
    assert rows == [9, 1, 1, 1, 1, 1, 2, 1, 1]


def test_adapters_share_no_prefix_with_one_another() -> None:
    harness = Harness()
    for number, name in enumerate(("a", "b"), 1):
        harness.engine.adapters.put(name, number)
    asked = request([1, 2, 3, 4, 5, 6, 7, 8, 9], 3)
    for number, adapter in enumerate((None, "a", "b", "a", None)):
        harness.engine.submit(number, msgspec.structs.replace(asked, adapter=adapter))
        harness.run()
    assert [harness.answer(number).cached_tokens for number in range(5)] == [0, 0, 0, 8, 8]
    used = [step[0].adapter for step in harness.runner.steps]
    assert list(dict.fromkeys(used)) == [0, 1, 2]
    with pytest.raises(Fault, match="no adapter 'c'; it has a, b"):
        harness.engine.submit(9, msgspec.structs.replace(asked, adapter="c"))


def test_an_adapter_is_freed_after_its_last_sequence() -> None:
    harness = Harness()
    harness.engine.adapters.put("a", 7)
    harness.engine.submit(1, msgspec.structs.replace(request([1, 2, 3], 4), adapter="a"))
    harness.step()
    harness.engine.adapters.put("a", 8)
    harness.engine.adapters.remove("a")
    assert harness.runner.freed_adapters == [8]
    harness.run()
    assert harness.answer(1).finish is not None
    assert harness.runner.freed_adapters == [8, 7]


def test_turn_of_a_chat_finds_the_answer_before_it() -> None:
    harness, asked = Harness(), request([1, 2, 3, 4], 6)
    harness.engine.submit(1, asked)
    harness.run()
    follow_up = request([*asked.prompt_ids, *harness.answer(1).token_ids][:10], 2)
    harness.engine.submit(2, follow_up)
    harness.run()
    assert harness.answer(2).cached_tokens == 8
    assert harness.answer(2).token_ids == toy_answer(follow_up)


def test_prompt_log_probabilities_are_exact_and_complete() -> None:
    prompt = [int(token) for token in np.random.default_rng(1).integers(0, 50, 30)]
    harness = Harness()
    harness.engine.submit(1, request(prompt, 1))
    harness.run()
    harness.engine.submit(2, request(prompt, 2, prompt_logprobs=2, logprobs=0))
    harness.run()
    event = harness.answer(2)
    assert event.cached_tokens == 0
    reported = event.prompt_choices
    assert reported is not None
    assert [choice.token_id for choice in reported] == prompt[1:]
    for position, choice in enumerate(reported):
        row = toy_row(prompt[: position + 1], 20_000.0).astype(np.float64)
        expected = row - math.log(np.exp(row).sum())
        assert choice.logprob == pytest.approx(expected[choice.token_id], abs=1e-5)
        assert choice.top[0][0] == row.argmax()
    assert len(event.choices or ()) == 2


def test_cancelled_request_gets_nothing_after_the_next_step() -> None:
    harness = Harness()
    submit_all(harness, [request([1, 2], 100), request([3, 4], 5)])
    harness.step()
    harness.engine.cancel(0)
    harness.run()
    assert len(harness.outcomes[0]) == 1
    assert harness.answer(1).token_ids == toy_answer(request([3, 4], 5))
    harness.engine.cancel(0)
    harness.engine.cancel(77)
    harness.run()


@pytest.mark.parametrize(
    ("prompt", "kind", "numbers"),
    [
        ([1] * 100, FaultKind.CONTEXT_OVERFLOW, ("100", "100")),
        ([1] * 60, FaultKind.OUT_OF_MEMORY, ("60", "40")),
        ([], FaultKind.INVALID_REQUEST, ()),
        ([1, 50], FaultKind.INVALID_REQUEST, ("50", "50")),
        ([-1], FaultKind.INVALID_REQUEST, ("-1",)),
    ],
)
def test_request_that_can_never_fit_is_refused(
    prompt: list[int], kind: FaultKind, numbers: tuple[str, ...]
) -> None:
    harness = Harness(FakeRunner(num_blocks=10), context_len=100)
    with pytest.raises(Fault) as caught:
        harness.engine.submit(1, request(prompt, 1))
    assert caught.value.kind is kind
    assert all(number in caught.value.message for number in numbers)


def test_request_that_just_fits_is_served() -> None:
    harness = Harness(FakeRunner(num_blocks=10))
    harness.engine.submit(1, request([1] * 39, 100))
    harness.run()
    assert len(harness.answer(1).token_ids) == 1


def test_negative_seed_is_a_seed() -> None:
    harness = Harness()
    submit_all(harness, [request([1], 9, temperature=1.0, seed=-5) for _ in range(2)])
    harness.run()
    assert harness.answer(0).token_ids == harness.answer(1).token_ids
