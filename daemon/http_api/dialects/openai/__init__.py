"""OpenAI's API with vLLM's extra fields: chat completions, completions, models; and vLLM's adapters."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from daemon.http_api.dialects.openai.adapters import Adapters
from daemon.http_api.dialects.openai.chat import Chat
from daemon.http_api.dialects.openai.completions import Completions
from daemon.http_api.dialects.openai.models import Models
from daemon.http_api.errors import Family
from daemon.http_api.exchange import endpoint
from daemon.http_api.options import HttpOptions
from daemon.service.facade import Service


def routes(service: Service, options: HttpOptions, *, controls_models: bool) -> list[BaseRoute]:
    chat, completions = Chat(service, options), Completions(service, options)
    return [
        Route("/v1/chat/completions", endpoint(Family.OPENAI, chat.create), methods=["POST"]),
        Route("/v1/completions", endpoint(Family.OPENAI, completions.create), methods=["POST"]),
        *model_routes(service, options, controls_models=controls_models),
    ]


def model_routes(service: Service, options: HttpOptions, *, controls_models: bool) -> list[BaseRoute]:
    """What lists models and adapters, and what changes the adapters that are served."""
    models = Models(service)
    adapters = Adapters(service, options, controls_models=controls_models)
    return [
        Route("/v1/models", endpoint(Family.OPENAI, models.list), methods=["GET"]),
        Route("/v1/models/{model}", endpoint(Family.OPENAI, models.show), methods=["GET"]),
        Route("/v1/load_lora_adapter", endpoint(Family.OPENAI, adapters.load), methods=["POST"]),
        Route("/v1/unload_lora_adapter", endpoint(Family.OPENAI, adapters.unload), methods=["POST"]),
    ]
