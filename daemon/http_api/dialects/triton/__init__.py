"""KServe v2 with Triton's extensions: metadata, infer, generate, statistics, model repository."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from contract.faults import Fault, FaultKind
from daemon.http_api.dialects.triton.generate import Generate
from daemon.http_api.dialects.triton.infer import Infer
from daemon.http_api.dialects.triton.models import Models
from daemon.http_api.dialects.triton.repository import Repository
from daemon.http_api.errors import Family
from daemon.http_api.exchange import Handler, endpoint
from daemon.http_api.options import HttpOptions
from daemon.service.facade import Service

_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version:int}")
_NOT_OFFERED = (
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
    "/v2/logging",
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
)


def routes(service: Service, options: HttpOptions, *, controls_models: bool) -> list[BaseRoute]:
    """``controls_models``: load and unload are allowed here."""
    models = Models(service, options)
    repository = Repository(service, options, controls_models=controls_models)
    infer, generate = Infer(service, options), Generate(service, options)
    return [
        _route("GET", "/v2", models.server),
        _route("GET", "/v2/", models.server),
        _route("GET", "/v2/health/live", models.live),
        _route("GET", "/v2/health/ready", models.ready),
        _route("GET", "/v2/models/stats", models.all_statistics),
        *_model_routes("GET", "", models.metadata),
        *_model_routes("GET", "/ready", models.model_ready),
        *_model_routes("GET", "/config", models.config),
        *_model_routes("GET", "/stats", models.statistics),
        *_model_routes("POST", "/infer", infer.infer),
        *_model_routes("POST", "/generate", generate.generate),
        *_model_routes("POST", "/generate_stream", generate.generate_stream),
        *_model_routes("POST", "/stopInfer", generate.stop),
        _route("POST", "/v2/repository/index", repository.index),
        _route("POST", "/v2/repository/{repository}/index", repository.index),
        _route("POST", "/v2/repository/models/{model}/load", repository.load),
        _route("POST", "/v2/repository/models/{model}/unload", repository.unload),
        *(Route(path, endpoint(Family.TRITON, _not_offered)) for path in _NOT_OFFERED),
    ]


def _route(method: str, path: str, handler: Handler) -> Route:
    return Route(path, endpoint(Family.TRITON, handler), methods=[method])


def _model_routes(method: str, suffix: str, handler: Handler) -> list[Route]:
    return [_route(method, path + suffix, handler) for path in _MODEL]


async def _not_offered(request: Request) -> Response:
    message = f"{request.url.path} is not offered by this server"
    raise Fault(FaultKind.UNSUPPORTED, message, "send tensors in the request; GET /v2 lists what is offered")
