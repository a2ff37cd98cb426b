"""``POST /v1/completions``: one or several raw prompts, as text or token ids."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec.structs import replace
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from contract.faults import Fault, FaultKind
from contract.generation import Delta, Finished, GenerateRequest, Started, Usage
from daemon.http_api import bodies, sse
from daemon.http_api.dialects.openai.body import (
    Frame,
    OpenAIFields,
    finish_word,
    generate_request,
    model_name,
    usage_object,
)
from daemon.http_api.dialects.openai.completion_logprobs import CompletionLogprobs
from daemon.http_api.errors import Family
from daemon.http_api.exchange import Computed
from daemon.http_api.gathering import Answer, raise_ending
from daemon.http_api.merging import merge
from daemon.http_api.options import HttpOptions
from daemon.kserve import fields
from daemon.kserve.sampling import MAX_INT
from daemon.service.facade import Service

DEFAULT_MAX_TOKENS = 16
MOST_PROMPTS = 2048


class CompletionFields(OpenAIFields):
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **OpenAIFields.unsupported,
        "prompt_logprobs": (),
        "suffix": ("",),
    }

    prompt: Any
    # Nothing new: only the prompt is scored.
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Completion(msgspec.Struct):
    """A parsed body: a request for each prompt."""

    requests: list[GenerateRequest]
    stream: bool
    with_usage: bool
    echo: bool
    prompt_only: bool
    """The engine must make a token; it is thrown away."""
    with_logprobs: bool


def parse(data: Mapping[str, Any], request_id: str, options: HttpOptions) -> Completion:
    """The body of a completion as generate requests. Raises ``Fault``."""
    body = fields.parse(CompletionFields, data)
    echo, prompt_only = bool(body.echo), body.max_tokens == 0
    if prompt_only and not echo:
        raise _invalid("max_tokens", "must be at least 1, or 0 with 'echo': true")
    sampling = body.sampling(logprobs=body.logprobs, prompt_logprobs=body.logprobs if echo else None)
    if prompt_only:
        sampling = replace(sampling, max_tokens=1)
    prompts = _prompts(body.prompt)
    requests = []
    for index, prompt in enumerate(prompts):
        own_id = request_id if len(prompts) == 1 else f"{request_id}-{index}"
        request = generate_request(body, own_id, sampling)
        request.model = model_name(body, options)
        # An explicit null asks for the rest of the context, silence for the dialect's few tokens.
        asked_for_all = body.max_tokens is None and "max_tokens" in body.model_fields_set
        request.default_max_tokens = None if asked_for_all else DEFAULT_MAX_TOKENS
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids = prompt
        requests.append(request)
    return Completion(
        requests=requests,
        stream=bool(body.stream),
        with_usage=bool(body.stream_options and body.stream_options.include_usage),
        echo=echo,
        prompt_only=prompt_only,
        with_logprobs=body.logprobs is not None,
    )


class Completions:
    def __init__(self, service: Service, options: HttpOptions) -> None:
        self._service = service
        self._options = options

    async def create(self, request: Request) -> Response:
        data = await bodies.read_object(request, self._options)
        completion = parse(data, request.state.request_id, self._options)
        for one in completion.requests:
            one.caller = request.state.caller
        run = _Run(self._service, completion, request.state.request_id)
        if completion.stream:
            return sse.EventStream(Family.OPENAI, run.chunks())
        return Computed(Family.OPENAI, run.complete)


class _Run:
    """One call on its way: choices are numbered prompt by prompt."""

    def __init__(self, service: Service, completion: Completion, request_id: str) -> None:
        self._service = service
        self._completion = completion
        self._n = completion.requests[0].n
        count = len(completion.requests) * self._n
        self._logprobs = [CompletionLogprobs() for _ in range(count)]
        self._started: list[Started | None] = [None] * len(completion.requests)
        self._usages: list[Usage] = []
        model = completion.requests[0].model or ""
        self._frame = Frame(f"cmpl-{request_id}", "text_completion", int(time.time()), model)

    async def complete(self) -> Response:
        answers = [Answer() for _ in self._logprobs]
        async with aclosing(merge(self._service.generate, self._completion.requests)) as events:
            async for prompt, event in events:
                if isinstance(event, Delta):
                    answers[prompt * self._n + event.index].add(event)
                elif isinstance(event, Started):
                    self._start(prompt, event)
                elif isinstance(event, Finished):
                    self._usages.append(event.usage)
                else:
                    raise_ending(event)
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return bodies.json_response(self._frame.wrap(choices, usage=self._usage()))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        more: dict[str, Any] = {"usage": None} if self._completion.with_usage else {}
        async with aclosing(merge(self._service.generate, self._completion.requests)) as events:
            async for prompt, event in events:
                if isinstance(event, Delta):
                    yield sse.event(self._frame.wrap([self._delta(prompt, event)], **more))
                elif isinstance(event, Started):
                    self._start(prompt, event)
                    if self._completion.echo:
                        for choice in self._echoes(prompt, event):
                            yield sse.event(self._frame.wrap([choice], **more))
                elif isinstance(event, Finished):
                    self._usages.append(event.usage)
                else:
                    raise_ending(event)
        if self._completion.with_usage:
            yield sse.event(self._frame.wrap([], usage=self._usage()))
        yield sse.DONE

    def _start(self, prompt: int, started: Started) -> None:
        self._started[prompt] = started
        self._frame.model = self._frame.model or started.model

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        completion, started = self._completion, self._started[index // self._n]
        prompt_text = started.prompt_text if completion.echo and started else ""
        prompt_logprobs = (started.prompt_logprobs if completion.echo and started else None) or []
        text = "" if completion.prompt_only else answer.text
        entries = prompt_logprobs + ([] if completion.prompt_only else answer.logprobs)
        return {
            "index": index,
            "text": prompt_text + text,
            "logprobs": self._logprobs[index].take(entries) if completion.with_logprobs else None,
            "finish_reason": finish_word(answer.finish_reason),
        }

    def _delta(self, prompt: int, delta: Delta) -> dict[str, Any]:
        completion, index = self._completion, prompt * self._n + delta.index
        entries = [] if completion.prompt_only else delta.logprobs or []
        return {
            "index": index,
            "text": "" if completion.prompt_only else delta.text,
            "logprobs": self._logprobs[index].take(entries) if completion.with_logprobs else None,
            "finish_reason": finish_word(delta.finish_reason),
        }

    def _echoes(self, prompt: int, started: Started) -> list[dict[str, Any]]:
        with_logprobs, entries = self._completion.with_logprobs, started.prompt_logprobs or []
        return [
            {
                "index": index,
                "text": started.prompt_text,
                "logprobs": self._logprobs[index].take(entries) if with_logprobs else None,
                "finish_reason": None,
            }
            for index in range(prompt * self._n, (prompt + 1) * self._n)
        ]

    def _usage(self) -> dict[str, Any]:
        prompt_only = self._completion.prompt_only
        total = Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in self._usages),
            completion_tokens=0 if prompt_only else sum(usage.completion_tokens for usage in self._usages),
            cached_tokens=sum(usage.cached_tokens for usage in self._usages),
        )
        return usage_object(total)


def _prompts(value: Any) -> list[str | list[int]]:
    """One or several prompts, whichever of OpenAI's four forms they came in."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise _invalid("prompt", "must be a string, a list of strings, or one or several lists of token ids")
    if all(_is_token_id(element) for element in value):
        return [value]
    if len(value) > MOST_PROMPTS:
        raise _invalid("prompt", f"may hold {MOST_PROMPTS} prompts; send the {len(value)} in several calls")
    for index, element in enumerate(value):
        is_ids = isinstance(element, list) and element and all(_is_token_id(token) for token in element)
        if not is_ids and not isinstance(element, str):
            raise _invalid(f"prompt.{index}", "must be a string or a list of token ids")
    return list(value)


def _is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INT


def _invalid(field: str, reason: str) -> Fault:
    return Fault(FaultKind.INVALID_REQUEST, f"{field}: {reason}", "", {"param": field})
