"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

from msgspec.structs import replace
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from contract.faults import Fault, FaultKind
from contract.generation import Delta, Finished, GenerateRequest, Started, TokenLogprob
from daemon.http_api import bodies, sse
from daemon.http_api.dialects.openai.body import (
    Frame,
    OpenAIFields,
    finish_word,
    generate_request,
    model_name,
    usage_object,
)
from daemon.http_api.errors import Family
from daemon.http_api.exchange import Computed
from daemon.http_api.gathering import Answer, gather, raise_ending
from daemon.http_api.options import HttpOptions
from daemon.kserve import fields
from daemon.kserve.chat import parse_messages
from daemon.kserve.sampling import Positive
from daemon.service.facade import Service


class ChatFields(OpenAIFields):
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **OpenAIFields.unsupported,
        "audio": (),
        "chat_template": (),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True,),
        "prediction": (),
        "prompt_logprobs": (),
        "reasoning_effort": ("none",),
        "tool_choice": ("none", "auto"),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Any
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None


def parse(
    data: Mapping[str, Any], request_id: str, options: HttpOptions
) -> tuple[ChatFields, GenerateRequest]:
    """The body of a chat completion as a generate request. Raises ``Fault``."""
    body = fields.parse(ChatFields, data)
    if body.top_logprobs is not None and not body.logprobs:
        message = "top_logprobs: needs 'logprobs': true"
        raise Fault(FaultKind.INVALID_REQUEST, message, "", {"param": "top_logprobs"})
    sampling = body.sampling(logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    request = generate_request(body, request_id, sampling)
    request.model = model_name(body, options)
    request.messages = parse_messages(body.messages)
    request.template_options = _template_options(body, data)
    if body.max_completion_tokens is not None:
        request.sampling = replace(request.sampling, max_tokens=body.max_completion_tokens)
    return body, request


class Chat:
    def __init__(self, service: Service, options: HttpOptions) -> None:
        self._service = service
        self._options = options

    async def create(self, request: Request) -> Response:
        data = await bodies.read_object(request, self._options)
        body, generate = parse(data, request.state.request_id, self._options)
        generate.caller = request.state.caller
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return sse.EventStream(Family.OPENAI, self._chunks(generate, with_usage))
        return Computed(Family.OPENAI, lambda: self._complete(generate))

    async def _complete(self, request: GenerateRequest) -> Response:
        gathered = await gather(self._service.generate(request), request.n)
        choices = [_choice(index, answer) for index, answer in enumerate(gathered.answers)]
        frame = _frame(request, gathered.started, "chat.completion")
        return bodies.json_response(frame.wrap(choices, usage=usage_object(gathered.usage)))

    async def _chunks(self, request: GenerateRequest, with_usage: bool) -> AsyncGenerator[bytes, None]:
        # OpenAI sends `usage` in every chunk once it was asked for: null until the last.
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        frame = Frame("", "", 0, "")
        async with aclosing(self._service.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    for choice in _delta_choices(event):
                        yield sse.event(frame.wrap([choice], **more))
                elif isinstance(event, Started):
                    frame = _frame(request, event, "chat.completion.chunk")
                    for index in range(request.n):
                        opening = {"role": "assistant", "content": ""}
                        yield sse.event(frame.wrap([_chunk(index, opening)], **more))
                elif isinstance(event, Finished) and with_usage:
                    yield sse.event(frame.wrap([], usage=usage_object(event.usage)))
                else:
                    raise_ending(event)
        yield sse.DONE


def _template_options(body: ChatFields, data: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    if body.tools and data.get("tool_choice") != "none":
        options["tools"] = body.tools
    if body.add_generation_prompt is not None:
        options["add_generation_prompt"] = body.add_generation_prompt
    return options


def _frame(request: GenerateRequest, started: Started, kind: str) -> Frame:
    model = request.model or started.model
    return Frame(f"chatcmpl-{request.request_id}", kind, int(time.time()), model)


def _choice(index: int, answer: Answer) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text},
        "logprobs": _logprobs(answer.logprobs) if answer.logprobs else None,
        "finish_reason": finish_word(answer.finish_reason),
    }


def _delta_choices(delta: Delta) -> list[dict[str, Any]]:
    """One chunk with text, and a closing one without, as OpenAI sends them."""
    choices = []
    if delta.text or delta.logprobs:
        logprobs = _logprobs(delta.logprobs) if delta.logprobs else None
        choices.append(_chunk(delta.index, {"content": delta.text}, logprobs))
    if delta.finish_reason is not None:
        choices.append(_chunk(delta.index, {}, finish_reason=finish_word(delta.finish_reason)))
    return choices


def _chunk(
    index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(entries: list[TokenLogprob]) -> dict[str, Any]:
    return {"content": [_token(entry) for entry in entries], "refusal": None}


def _token(entry: TokenLogprob) -> dict[str, Any]:
    rivals = [_rival(token, logprob) for _, token, logprob in entry.top]
    chosen = entry.raw or entry.token.encode()
    return {
        "token": entry.token,
        "logprob": entry.logprob,
        "bytes": list(chosen),
        "top_logprobs": rivals,
    }


def _rival(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
