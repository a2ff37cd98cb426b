"""vLLM's plain ``/generate`` with ``prompt``, as MindIE offers it: prompt and completion in one text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from contract.generation import Delta, GenerateRequest, Started
from daemon.http_api import bodies, sse
from daemon.http_api.errors import Family
from daemon.http_api.exchange import Computed
from daemon.http_api.gathering import gather, raise_ending
from daemon.kserve import fields
from daemon.kserve.sampling import SamplingFields
from daemon.service.facade import Service

DEFAULT_MAX_TOKENS = 16


class VllmFields(SamplingFields):
    prompt: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    model: str | None = None


def parse(data: Mapping[str, Any], request_id: str, model: str | None) -> tuple[GenerateRequest, bool]:
    """The body as a generate request, and whether to stream. Raises ``Fault``."""
    body = fields.parse(VllmFields, data)
    request = GenerateRequest(
        request_id=request_id,
        dialect="vllm",
        model=body.model or model,
        text=body.prompt,
        sampling=body.sampling(),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        n=body.n or 1,
        skip_special_tokens=not body.keeps_special_tokens,
        truncate_prompt=body.truncate_prompt_tokens,
        priority=body.priority or 0,
    )
    return request, bool(body.stream)


class Vllm:
    def __init__(self, service: Service) -> None:
        self._service = service

    def answer(self, request: GenerateRequest, *, stream: bool) -> Response:
        if stream:
            return sse.EventStream(Family.MINDIE, self._chunks(request), sse.MESSAGES)
        return Computed(Family.MINDIE, lambda: self._complete(request))

    async def _complete(self, request: GenerateRequest) -> Response:
        gathered = await gather(self._service.generate(request), request.n)
        prompt = gathered.started.prompt_text
        texts = [f"{prompt} {answer.text}" for answer in gathered.answers]
        return bodies.json_response({"text": texts})

    async def _chunks(self, request: GenerateRequest) -> AsyncGenerator[bytes, None]:
        """Not events: each message is an object with all text so far, ended by a NUL byte."""
        texts = [""] * request.n
        async with aclosing(self._service.generate(request)) as events:
            async for event in events:
                if isinstance(event, Started):
                    texts = [f"{event.prompt_text} "] * request.n
                elif isinstance(event, Delta):
                    texts[event.index] += event.text
                    yield sse.message({"text": texts})
                else:
                    raise_ending(event)
