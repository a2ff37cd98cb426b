"""Health under everyone's names, and small facts: TGI's ``/info``, vLLM's ``/tokenize``, ``/version``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from contract.faults import Fault, FaultKind
from daemon.http_api import bodies
from daemon.http_api.errors import Family, response_of
from daemon.http_api.exchange import endpoint
from daemon.http_api.options import HttpOptions
from daemon.kserve import fields
from daemon.kserve.fields import Fields
from daemon.repository.status import ModelStatus, State
from daemon.service.facade import Service

_NOT_UP = (State.LOADING, State.RESTARTING, State.BROKEN)
"""What may be why the daemon is not ready; a model that nobody asked for is not."""


class TokenizeFields(Fields):
    prompt: str | None = None
    inputs: str | None = None
    model: str | None = None


class Health:
    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/health", self.ready, methods=["GET"]),
            Route("/health/live", self.live, methods=["GET"]),
            Route("/health/ready", self.ready, methods=["GET"]),
            Route("/ping", self.live, methods=["GET", "POST"]),
        ]

    async def live(self, _: Request) -> Response:
        return Response(status_code=200) if self._service.live() else _unavailable("the daemon is not live")

    async def ready(self, _: Request) -> Response:
        """200 without a body, or 503 with the models that are not ready."""
        if self._service.ready():
            return Response(status_code=200)
        waiting = [_state(status) for status in self._service.models() if status.state in _NOT_UP]
        return _unavailable(f"the daemon is not ready: {', '.join(waiting) or 'it starts or stops'}")


class Facts:
    def __init__(self, service: Service, options: HttpOptions) -> None:
        self._service = service
        self._options = options

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.greeting, methods=["GET"]),
            Route("/info", endpoint(Family.MINDIE, self.info), methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/tokenize", endpoint(Family.OPENAI, self.tokenize), methods=["POST"]),
            Route("/v1/tokenizer", endpoint(Family.MINDIE, self.token_count), methods=["POST"]),
        ]

    async def info(self, request: Request) -> Response:
        status = self._service.find(request.headers.get("x-model") or None)
        limit = status.max_input_tokens or max(status.context_len - 1, 0)
        info = {
            "model_id": status.name,
            "model_sha": None,
            "model_dtype": status.details.get("dtype"),
            "model_device_type": status.details.get("device", "cpu"),
            "model_pipeline_tag": "text-generation",
            "max_input_length": limit,
            "max_input_tokens": limit,
            "max_total_tokens": status.context_len,
            "max_best_of": 1,
            "max_client_batch_size": 1,
            "router": "mindport",
            "version": self._options.version,
            "docker_label": None,
            "models": [_info(other) for other in self._service.models() if other.state is State.READY],
        }
        return bodies.json_response(info)

    async def greeting(self, _: Request) -> Response:
        """For whoever opens the address in a browser."""
        text = f"mindport {self._options.version} is running. GET /v1/models lists what it serves.\n"
        return Response(text, media_type="text/plain")

    async def version(self, _: Request) -> Response:
        return bodies.json_response({"version": self._options.version})

    async def tokenize(self, request: Request) -> Response:
        status, tokens = await self._tokens(request, "prompt")
        answer = {"tokens": tokens, "count": len(tokens), "max_model_len": status.context_len}
        return bodies.json_response(answer)

    async def token_count(self, request: Request) -> Response:
        """MindIE's answer."""
        _, tokens = await self._tokens(request, "inputs")
        return bodies.json_response({"token_number": len(tokens), "tokens": tokens})

    async def _tokens(self, request: Request, field: str) -> tuple[ModelStatus, list[int]]:
        data = await bodies.read_object(request, self._options)
        asked = fields.parse(TokenizeFields, data)
        text = asked.prompt if asked.prompt is not None else asked.inputs
        if text is None:
            raise Fault(FaultKind.INVALID_REQUEST, f"{field}: this field is required", "", {"param": field})
        model = asked.model or request.headers.get("x-model") or None
        return self._service.find(model), await self._service.tokenize(model, text)


def _info(status: ModelStatus) -> dict[str, Any]:
    return {
        "model_id": status.name,
        "model_version": status.version,
        "model_dtype": status.details.get("dtype"),
        "model_device_type": status.details.get("device", "cpu"),
        "model_pipeline_tag": "text-generation",
        "model_sha": None,
        "max_total_tokens": status.context_len,
    }


def _state(status: ModelStatus) -> str:
    progress = f" {status.progress:.0%}" if status.state is State.LOADING else ""
    return f"{status.name} version {status.version} is {status.state}{progress}"


def _unavailable(message: str) -> Response:
    return response_of(Family.MINDIE, Fault(FaultKind.NOT_READY, message))
