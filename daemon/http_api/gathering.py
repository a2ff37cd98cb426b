"""One request's events gathered into whole answers, for dialects that answer at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from contract.faults import Fault, FaultKind
from contract.generation import (
    Cancelled,
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    Usage,
)


class Answer(msgspec.Struct):
    """One of the ``n`` answers."""

    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs or ())
        self.finish_reason = delta.finish_reason or self.finish_reason


class Gathered(msgspec.Struct):
    started: Started
    answers: list[Answer]
    usage: Usage


async def gather(events: AsyncGenerator[Event, None], n: int) -> Gathered:
    """Everything a request produced. Raises ``Fault`` when it failed or was cancelled."""
    started: Started | None = None
    answers = [Answer() for _ in range(n)]
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                answers[event.index].add(event)
            elif isinstance(event, Started):
                started = event
            elif isinstance(event, Finished) and started is not None:
                return Gathered(started, answers, event.usage)
            else:
                raise_ending(event)
    raise Fault(FaultKind.INTERNAL, "the answer ended without a terminal event")


def raise_ending(event: Event) -> None:
    """Raise the fault of an event that ends a request badly; others pass."""
    if isinstance(event, Failed):
        raise Fault.from_dict(event.fault)
    if isinstance(event, Cancelled):
        raise Fault(FaultKind.CANCELLED, "the request was cancelled")
