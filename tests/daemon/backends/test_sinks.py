from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.base import Cancel, TokenChoice, TokenEvent, TokenRequest, TokenSink
from daemon.backends.sinks import TokenInbox, merge, pull, pump
from tests.fakes_engine import collect, request, tokens_of


async def scripted(*steps: TokenEvent | Exception) -> AsyncIterator[TokenEvent]:
    for step in steps:
        await asyncio.sleep(0)
        if isinstance(step, Exception):
            raise step
        yield step


async def test_what_is_pumped_into_a_sink_can_be_pulled_again() -> None:
    script = [TokenEvent([1]), TokenEvent([2, 3]), TokenEvent([4], finish="length"), TokenEvent([5])]
    cancelled: list[int] = []

    def start(_: TokenRequest, sink: TokenSink) -> Cancel:
        pumping = asyncio.get_running_loop().create_task(pump(scripted(*script), sink))
        return lambda: cancelled.append(pumping.cancel())

    events = await collect(pull(start, request([0])))
    assert tokens_of(events) == [1, 2, 3, 4]
    assert events[-1].finish == "length"
    left = pull(start, request([0]))
    await anext(left)
    await left.aclose()  # type: ignore[attr-defined]
    assert cancelled[-1]


@pytest.mark.parametrize(
    ("steps", "kind", "text"),
    [
        ([TokenEvent([1]), Fault(FaultKind.TOO_LARGE, "too much")], FaultKind.TOO_LARGE, "too much"),
        ([TokenEvent([1]), ValueError("a defect")], FaultKind.INTERNAL, "ValueError: a defect"),
        ([TokenEvent([1]), MemoryError()], FaultKind.OUT_OF_MEMORY, "out of memory"),
        ([TokenEvent([1])], FaultKind.INTERNAL, "without saying why"),
    ],
    ids=["fault", "defect", "memory", "no finish"],
)
async def test_a_pump_ends_with_a_finish_or_a_fault(
    steps: list[TokenEvent | Exception], kind: FaultKind, text: str
) -> None:
    inbox = TokenInbox()
    await pump(scripted(*steps), inbox)
    assert (await inbox.get()).token_ids == [1]
    with pytest.raises(Fault, match=text) as caught:
        await inbox.get()
    assert caught.value.kind is kind


def test_merge_keeps_order_and_ends() -> None:
    first = TokenEvent([1], [TokenChoice(1, -1.0)], [TokenChoice(9, -2.0)], None, 16, 0.5)
    last = TokenEvent([2, 3], [TokenChoice(2, -1.0), TokenChoice(3, -1.0)], None, "length")
    merged = merge([first, last])
    assert merged.token_ids == [1, 2, 3]
    assert [choice.token_id for choice in merged.choices or ()] == [1, 2, 3]
    assert merged.prompt_choices == first.prompt_choices
    assert (merged.finish, merged.cached_tokens, merged.queue_s) == ("length", 16, 0.5)
    assert merge([TokenEvent([1]), TokenEvent([2])]).choices is None


async def test_inbox_merges_what_nobody_reads_and_then_fails() -> None:
    inbox = TokenInbox()
    for token in range(3):
        inbox.put(TokenEvent([token]))
    assert (await inbox.get()).token_ids == [0, 1, 2]
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(TokenEvent([3]))
    assert (await waiting).token_ids == [3]
    inbox.put(TokenEvent([4]))
    inbox.fail(Fault(FaultKind.INTERNAL, "first"))
    inbox.fail(Fault(FaultKind.INTERNAL, "second"))
    assert (await inbox.get()).token_ids == [4]
    with pytest.raises(Fault, match="first"):
        await inbox.get()
