"""``/generate``, ``/generate_stream`` and ``/``: several dialects on one path, told apart by the body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from contract.faults import Fault, FaultKind
from daemon.http_api import bodies
from daemon.http_api.dialects import mindie_body, vllm
from daemon.http_api.dialects.mindie import Mindie
from daemon.http_api.exchange import endpoint
from daemon.http_api.options import HttpOptions
from daemon.service.facade import Service

_PROMPT_FIELDS = ("inputs", "prompt", "messages")


def routes(service: Service, options: HttpOptions) -> list[BaseRoute]:
    generate = Generate(service, options)
    family = generate.mindie.family
    return [
        Route("/", endpoint(family, generate.root), methods=["POST"]),
        Route("/generate", endpoint(family, generate.generate), methods=["POST"]),
        Route("/generate_stream", endpoint(family, generate.generate_stream), methods=["POST"]),
    ]


class Generate:
    def __init__(self, service: Service, options: HttpOptions) -> None:
        self._options = options
        self.mindie = Mindie(service, options.generate_flavour)
        self._vllm = vllm.Vllm(service)

    async def generate(self, request: Request) -> Response:
        data = await bodies.read_object(request, self._options)
        if _prompt_field(data) == "prompt":
            parsed, stream = vllm.parse(data, request.state.request_id, _model(request))
            parsed.caller = request.state.caller
            return self._vllm.answer(parsed, stream=stream)
        return self.mindie.answer(self._parse(data, request, stream=None))

    async def generate_stream(self, request: Request) -> Response:
        data = await bodies.read_object(request, self._options)
        return self.mindie.answer(self._parse(data, request, stream=True))

    async def root(self, request: Request) -> Response:
        data = await bodies.read_object(request, self._options)
        return self.mindie.answer(self._parse(data, request, stream=None), in_array=True)

    def _parse(
        self, data: Mapping[str, Any], request: Request, *, stream: bool | None
    ) -> mindie_body.Generate:
        flavour = self.mindie.flavour
        request_id = request.state.request_id
        asked = mindie_body.parse(data, request_id, _model(request), flavour, stream=stream)
        asked.request.caller = request.state.caller
        return asked


def _model(request: Request) -> str | None:
    return request.headers.get("x-model") or None


def _prompt_field(data: Mapping[str, Any]) -> str:
    given = [name for name in _PROMPT_FIELDS if name in data]
    if len(given) > 1:
        names = " and ".join(f"'{name}'" for name in given)
        hint = "'inputs' is for MindIE's and TGI's form, 'prompt' for vLLM's"
        raise Fault(FaultKind.INVALID_REQUEST, f"{names} exclude each other", hint)
    if given == ["messages"]:
        message = "messages: this path does not take chats"
        hint = "send the messages to /v1/chat/completions"
        raise Fault(FaultKind.INVALID_REQUEST, message, hint, {"param": "messages"})
    if not given:
        hint = 'send {"inputs": "...", "parameters": {...}}'
        raise Fault(FaultKind.INVALID_REQUEST, "the body has neither 'inputs' nor 'prompt'", hint)
    return given[0]
