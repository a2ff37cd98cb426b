"""Events to responses: deltas, gathered answers, several at once, and bad ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from contract.generation import Cancelled, Delta, Event, Failed, Finished, Started, TokenLogprob, Usage
from contract.tensors import values
from daemon.kserve.request import Target, parse_values
from daemon.kserve.response import Formatter, OutputTensors

STARTED = Started("m", "1", [5, 6, 7], "p q r")
FINISHED = Finished(Usage(3, 2))
ALL = {
    "return_finish_reason": True,
    "return_cumulative_logprob": True,
    "return_logprobs": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}


def formatter(**asked: Any) -> Formatter:
    return Formatter(parse_values(Target("m", "1", "r"), {"text_input": "p q r", **asked}))


def plain(response: OutputTensors) -> dict[str, Any]:
    return {tensor.name: values(tensor) for tensor in response.tensors}


def test_streaming_gives_a_response_per_delta() -> None:
    form = formatter(stream=True, **ALL)
    assert form.push(STARTED) == []
    (first,) = form.push(
        Delta("a", [8], logprobs=[TokenLogprob(8, "a", -0.5, ((8, "a", -0.5), (9, "b", -1.0)))])
    )
    (second,) = form.push(
        Delta("b", [9, 2], logprobs=[TokenLogprob(9, "b", -1.0)], finish_reason="stop_string")
    )
    (flag,) = form.push(FINISHED)
    assert plain(first)["text_output"] == ["a"]
    assert plain(first)["finish_reason"] == ["None"]
    assert plain(second) == {
        "text_output": ["b"],
        "finish_reason": ["stop"],
        "cumulative_logprob": [-1.5],
        "logprobs": ['[{"9":{"logprob":-1.0,"rank":1,"decoded_token":"b"}}]'],
        "num_input_tokens": [3],
        "num_output_tokens": [2],
    }
    assert not first.final
    assert (flag.final, flag.tensors, flag.request_id) == (True, [], "r")


def test_whole_answer_repeats_the_input_and_then_ends() -> None:
    form = formatter()
    form.push(STARTED)
    assert form.push(Delta("a", [8])) == []
    whole, flag = form.push(FINISHED)
    assert plain(whole) == {"text_output": ["p q ra"]}
    assert (whole.final, flag.final, flag.tensors) == (False, True, [])


def test_several_answers_share_a_response() -> None:
    form = formatter(stream=True, n=2)
    form.push(STARTED)
    (response,) = form.push(Delta("x", [8], index=1))
    assert plain(response)["text_output"] == ["", "x"]


async def test_collect_gathers_a_stream() -> None:
    form = formatter(stream=True, exclude_input_in_output=True)
    response = await form.collect(_events(STARTED, Delta("a", [8]), Delta("b", [9]), FINISHED))
    assert plain(response) == {"text_output": ["ab"]}
    assert response.final


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (Failed(Fault(FaultKind.MODEL_CRASHED, "it died").to_dict()), FaultKind.MODEL_CRASHED),
        (Cancelled(Usage(1, 1)), FaultKind.CANCELLED),
    ],
)
async def test_bad_ends_are_faults(last: Event, kind: FaultKind) -> None:
    with pytest.raises(Fault) as caught:
        await formatter().collect(_events(STARTED, last))
    assert caught.value.kind is kind
    form = formatter(stream=True)
    form.push(STARTED)
    with pytest.raises(Fault) as caught:
        form.push(last)
    assert caught.value.kind is kind


async def test_an_unfinished_answer_is_a_defect() -> None:
    with pytest.raises(Fault) as caught:
        await formatter().collect(_events(STARTED))
    assert caught.value.kind is FaultKind.INTERNAL


async def _events(*events: Event) -> AsyncIterator[Event]:
    for event in events:
        yield event
