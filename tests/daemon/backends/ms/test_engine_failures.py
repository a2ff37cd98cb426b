"""The engine when a step fails or its numbers are bad: only who is to blame fails."""

from __future__ import annotations

from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.ms.engine import MAX_FAILED_STEPS
from tests.daemon.backends.ms.engine_harness import Harness, submit_all
from tests.fakes_engine import FakeRunner, request, toy_answer


@pytest.mark.parametrize("options", [{}, {"prompt_logprobs": 0}, {"temperature": 1.0}])
def test_nan_fails_its_request_alone_and_is_not_cached(options: dict[str, Any]) -> None:
    harness = Harness()
    harness.runner.nan_token = 13
    poisoned = [*[1] * 18, 13]
    submit_all(harness, [request(poisoned, 5, **options), request([1, 2, 3], 5)])
    harness.run()
    assert "not finite" in harness.fault(0).message
    assert harness.answer(1).token_ids == toy_answer(request([1, 2, 3], 5))
    harness.runner.nan_token = None
    harness.engine.submit(3, request(poisoned, 2))
    harness.run()
    assert harness.answer(3).cached_tokens == 0


class Picky(FakeRunner):
    """Refuses every step with a certain token in it."""

    def execute(self, segments: Any) -> Any:
        if any(13 in segment.token_ids for segment in segments):
            raise Fault(FaultKind.INTERNAL, "logits are NaN")
        return super().execute(segments)


def test_step_that_fails_is_tried_one_by_one_to_find_who_is_to_blame() -> None:
    harness = Harness(Picky())
    requests = [request([1, 2, 3], 5), request([4, 13], 5), request([5, 6, 7], 5)]
    submit_all(harness, requests)
    harness.run()
    assert harness.fault(1).message == "logits are NaN"
    for number in (0, 2):
        assert harness.answer(number).token_ids == toy_answer(requests[number])
    assert harness.given_up == []


def test_requests_that_fail_alone_do_not_make_the_engine_broken() -> None:
    harness = Harness(Picky())
    for number in range(2 * MAX_FAILED_STEPS):
        harness.engine.submit(number, request([4, 13], 5))
        harness.run()
        assert harness.fault(number).message == "logits are NaN"
    assert harness.given_up == []
    harness.engine.submit(99, request([4, 5], 5))
    harness.run()
    assert harness.answer(99).token_ids == toy_answer(request([4, 5], 5))


def test_looking_whether_the_runner_works_spoils_no_shared_block() -> None:
    class Flaky(FakeRunner):
        def execute(self, segments: Any) -> Any:
            if any(segment.start == 8 and 13 in segment.token_ids for segment in segments):
                raise Fault(FaultKind.INTERNAL, "it fails")
            return super().execute(segments)

    harness, shared = Harness(Flaky()), [1, 2, 3, 4, 5, 6, 7, 8]
    asked = request([*shared, 9], 12)
    harness.engine.submit(1, asked)
    harness.step()
    harness.engine.submit(2, request([*shared, 13], 3))
    harness.run()
    assert harness.fault(2).message == "it fails"
    assert harness.answer(1).token_ids == toy_answer(asked)


def test_runner_that_always_fails_fails_requests_and_then_gives_up() -> None:
    harness = Harness()
    harness.runner.error = RuntimeError("no such operator")
    for number in range(MAX_FAILED_STEPS):
        assert harness.given_up == []
        harness.engine.submit(number, request([1, 2], 5))
        harness.run()
        assert "no such operator" in harness.fault(number).message
    assert harness.given_up == ["3 steps failed in a row"]
    assert harness.engine.stats.kv_used_fraction == 0.0


def test_one_good_step_forgives_the_failures_before() -> None:
    harness = Harness()
    for number in range(10):
        harness.runner.error = RuntimeError("now and then") if number % 3 else None
        harness.engine.submit(number, request([1, 2], 1))
        harness.run()
    assert harness.given_up == []
