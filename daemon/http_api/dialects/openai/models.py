"""``GET /v1/models``: what may be asked for by name."""

from __future__ import annotations

from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.http_api import bodies
from daemon.repository.status import ModelStatus, State
from daemon.service.facade import Service


class Models:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, _: Request) -> Response:
        """Each ready model by its name; where several versions are ready, each of them as well."""
        ready = [status for status in self._service.models() if status.state is State.READY]
        latest = {status.name: status for status in ready}
        versions = Counter(status.name for status in ready)
        data = [model_object(status.name, status) for status in latest.values()]
        data += [
            model_object(f"{status.name}@{status.version}", status)
            for status in ready
            if versions[status.name] > 1
        ]
        data += [adapter_object(name, status) for status in latest.values() for name in status.adapters]
        return bodies.json_response({"object": "list", "data": data})

    async def show(self, request: Request) -> Response:
        name = request.path_params["model"]
        status = self._service.find(name)
        form = adapter_object if name in status.adapters else model_object
        return bodies.json_response(form(name, status))


def model_object(name: str, status: ModelStatus) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(status.ready_since or 0),
        "owned_by": "mindport",
        "root": status.name,
        "parent": None,
        "max_model_len": status.context_len,
    }


def adapter_object(name: str, status: ModelStatus) -> dict[str, Any]:
    """An adapter is a model whose parent is the one that it changes."""
    return {**model_object(name, status), "root": name, "parent": status.name}
