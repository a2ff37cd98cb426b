"""The three HTTP applications, built from the service they front. Nothing here listens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from contract.faults import Fault, FaultKind
from daemon.http_api.dialects import generate, openai, triton
from daemon.http_api.errors import family_of, response_of
from daemon.http_api.health import Facts, Health
from daemon.http_api.management import DaemonControl, Management
from daemon.http_api.middleware import Authentication, BodyLimit, LastResort, RequestId, SameOrigin
from daemon.http_api.options import HttpOptions
from daemon.service.facade import Service

Render = Callable[[], Awaitable[tuple[bytes, str]]]
"""Metrics as text, and its content type."""


def build_inference_app(service: Service, options: HttpOptions) -> Starlette:
    """Every dialect, and health."""
    controls_models = not options.restrict_model_control
    routes = [
        *openai.routes(service, options, controls_models=controls_models),
        *generate.routes(service, options),
        *Facts(service, options).routes(),
        *Health(service).routes(),
        *triton.routes(service, options, controls_models=controls_models),
    ]
    return _build(routes, options)


def build_management_app(service: Service, options: HttpOptions, control: DaemonControl) -> Starlette:
    """Health, models and adapters, Triton's endpoints, and the daemon's own status and stop."""
    routes = [
        *Management(service, control).routes(),
        *Health(service).routes(),
        *openai.model_routes(service, options, controls_models=True),
        *triton.routes(service, options, controls_models=True),
    ]
    return _build(routes, options)


def build_metrics_app(render: Render, options: HttpOptions | None = None) -> Starlette:
    """``GET /metrics``."""

    async def metrics(_: Request) -> Response:
        content, content_type = await render()
        return Response(content, headers={"Content-Type": content_type})

    return _build([Route("/metrics", metrics, methods=["GET"])], options or HttpOptions())


def build_merged_app(apps: Sequence[Starlette], options: HttpOptions) -> Starlette:
    """Several of the above on one port; where two have a path, the first answers."""
    return _build([route for app in apps for route in app.routes], options)


def _build(routes: Sequence[BaseRoute], options: HttpOptions) -> Starlette:
    middleware = [
        Middleware(RequestId),
        Middleware(LastResort),
        Middleware(SameOrigin, allowed=options.allowed_origins),
        Middleware(Authentication, key_hashes=options.api_keys),
        Middleware(BodyLimit, limit=options.max_body_bytes),
    ]
    if options.allowed_origins:
        cors = Middleware(
            CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
        middleware.insert(1, cors)
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    """404 and 405 in the shape of the dialect the path belongs to."""
    path, method = request.url.path, request.method
    family = family_of(path)
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"Method Not Allowed: {method} {path}"
        response = response_of(family, Fault(FaultKind.INVALID_REQUEST, message, f"use {allowed}"), 405)
        response.headers["Allow"] = allowed
        return response
    served = any(getattr(route, "path", None) == "/v1/completions" for route in request.app.routes)
    hint = "GET /info and GET /v1/models list the models" if served else "inference is on http_port"
    if path == "/metrics":
        hint = "metrics are on metrics_port, 1027 unless it was set"
    fault = Fault(FaultKind.NOT_FOUND, f"Not Found: there is no {path} here", hint)
    return response_of(family, fault)
