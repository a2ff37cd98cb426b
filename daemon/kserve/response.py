"""Events of one answer, to responses of output tensors as Triton's vLLM backend shapes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from contract.faults import Fault, FaultKind
from contract.generation import Cancelled, Delta, Event, Failed, Finished, Started, TokenLogprob
from contract.tensors import Tensor, number_tensor, string_tensor
from daemon.kserve.request import ParsedRequest


class OutputTensors(msgspec.Struct, frozen=True):
    """One response."""

    model: str
    version: str
    request_id: str
    tensors: list[Tensor]
    final: bool
    """No response follows; when it has no tensors it is the flag-only response that ends a stream."""


class _Answer(msgspec.Struct):
    """What one of the ``n`` answers has produced since the last response."""

    text: str = ""
    token_count: int = 0
    logprobs: list[TokenLogprob] = []
    cumulative: float = 0.0
    """Over the whole answer, as vLLM reports it."""
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_count += len(delta.token_ids)
        for entry in delta.logprobs or ():
            self.logprobs.append(entry)
            self.cumulative += entry.logprob or 0.0
        if delta.finish_reason is not None:
            self.finish_reason = "length" if delta.finish_reason == "length" else "stop"

    def taken(self) -> None:
        self.text, self.token_count, self.logprobs = "", 0, []


class Formatter:
    """Turns events into responses: one per delta when streaming, else one with everything at the end.

    A response has an element for each of the ``n`` answers in every tensor. ``Failed`` and ``Cancelled``
    are raised as ``Fault``.
    """

    def __init__(self, parsed: ParsedRequest) -> None:
        self._parsed = parsed
        self._answers = [_Answer() for _ in range(parsed.request.n)]
        self._started: Started | None = None

    def push(self, event: Event) -> list[OutputTensors]:
        """The responses that ``event`` completes; the last has ``final`` and, streaming, no tensors."""
        match event:
            case Started():
                self._started = event
                return []
            case Delta():
                self._answers[event.index].add(event)
                return [self._response(final=False)] if self._parsed.stream else []
            case Finished():
                whole = [] if self._parsed.stream else [self._response(final=False)]
                return [*whole, self._wrap([], final=True)]
            case Failed():
                raise Fault.from_dict(event.fault)
            case Cancelled():
                raise Fault(FaultKind.CANCELLED, "the request was cancelled")

    async def collect(self, events: AsyncIterator[Event]) -> OutputTensors:
        """The whole answer as one final response, whatever ``stream`` says."""
        async for event in events:
            match event:
                case Started():
                    self._started = event
                case Delta():
                    self._answers[event.index].add(event)
                case Finished():
                    return self._response(final=True)
                case _:
                    self.push(event)
        raise Fault(FaultKind.INTERNAL, "the answer ended without a terminal event")

    def _response(self, *, final: bool) -> OutputTensors:
        tensors = self._tensors()
        for answer in self._answers:
            answer.taken()
        return self._wrap(tensors, final=final)

    def _wrap(self, tensors: list[Tensor], *, final: bool) -> OutputTensors:
        started = self._started
        if started is None:
            raise Fault(FaultKind.INTERNAL, "the answer did not begin with its started event")
        return OutputTensors(started.model, started.version, self._parsed.request.request_id, tensors, final)

    def _tensors(self) -> list[Tensor]:
        options, answers = self._parsed.options, self._answers
        prompt = self._started.prompt_text if self._started and options.include_input else ""
        tensors = [string_tensor("text_output", [prompt + answer.text for answer in answers])]
        if options.finish_reason:
            reasons = [answer.finish_reason or "None" for answer in answers]
            tensors.append(string_tensor("finish_reason", reasons))
        if options.cumulative_logprob:
            sums = [answer.cumulative for answer in answers]
            tensors.append(number_tensor("cumulative_logprob", "FP32", sums))
        if options.logprobs:
            tensors.append(string_tensor("logprobs", [_logprobs_json(answer) for answer in answers]))
        if options.num_input_tokens:
            count = len(self._started.prompt_token_ids) if self._started else 0
            tensors.append(number_tensor("num_input_tokens", "UINT32", [count]))
        if options.num_output_tokens:
            counts = [answer.token_count for answer in answers]
            tensors.append(number_tensor("num_output_tokens", "UINT32", counts))
        return tensors


def _logprobs_json(answer: _Answer) -> str:
    """vLLM's form: for each token an object of alternatives by token id."""
    if not answer.logprobs:
        return "null"
    return msgspec.json.encode([_alternatives(entry) for entry in answer.logprobs]).decode()


def _alternatives(entry: TokenLogprob) -> dict[str, Any]:
    rivals: dict[str, Any] = {
        str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": token}
        for rank, (token_id, token, logprob) in enumerate(entry.top, start=1)
    }
    chosen = str(entry.token_id)
    if chosen not in rivals:
        rank = 1 if not entry.top else len(entry.top) + 1
        rivals[chosen] = {"logprob": entry.logprob, "rank": rank, "decoded_token": entry.token}
    return rivals
