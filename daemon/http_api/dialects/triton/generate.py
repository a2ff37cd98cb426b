"""Triton's generate extension: inputs as plain JSON values, one answer or a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from contract.faults import Fault, FaultKind
from contract.tensors import invalid, values
from daemon.http_api import bodies, sse
from daemon.http_api.dialects.triton.path import target_of
from daemon.http_api.errors import Family
from daemon.http_api.exchange import Computed
from daemon.http_api.options import HttpOptions
from daemon.kserve import lookup
from daemon.kserve.request import ParsedRequest, parse_values
from daemon.kserve.response import Formatter, OutputTensors
from daemon.service.facade import Service


class Generate:
    def __init__(self, service: Service, options: HttpOptions) -> None:
        self._service = service
        self._options = options

    async def generate(self, request: Request) -> Response:
        parsed, named = await self._parse(request)
        if parsed.stream:
            message = (
                "generate expects model to produce exactly 1 response, use generate stream for model "
                "that generates various number of responses"
            )
            raise invalid(message, "send it to generate_stream, or without 'stream'")
        return Computed(Family.TRITON, lambda: self._complete(parsed, named))

    async def generate_stream(self, request: Request) -> Response:
        parsed, named = await self._parse(request)
        return sse.EventStream(Family.TRITON, self._chunks(parsed, named))

    async def stop(self, request: Request) -> Response:
        """MindIE's stopInfer: cancel a running request by its id."""
        data = await bodies.read_object(request, self._options)
        request_id = data.get("id")
        if not isinstance(request_id, str) or not request_id:
            raise invalid("id: must be the id of a running request")
        if not await self._service.cancel(request_id):
            message = f"no request with the id '{request_id}' is running"
            raise Fault(FaultKind.NOT_FOUND, message, "it may have ended; X-Request-ID tells ids")
        return bodies.json_response({"id": request_id})

    async def _parse(self, request: Request) -> tuple[ParsedRequest, bool]:
        """The request, and whether the caller gave it an id."""
        data = await bodies.read_object(request, self._options)
        request_id, parameters = data.pop("id", ""), data.pop("parameters", {})
        if not isinstance(request_id, str):
            raise invalid("id: must be a string")
        if not isinstance(parameters, dict):
            raise invalid("parameters: must be an object")
        target = target_of(request, request_id)
        parsed = parse_values(target, {**parameters, **_unwrapped(data)})
        lookup.find(self._service, target.model, target.version)
        return parsed, bool(request_id)

    async def _complete(self, parsed: ParsedRequest, named: bool) -> Response:
        async with aclosing(self._service.generate(parsed.request)) as events:
            response = await Formatter(parsed).collect(events)
        return bodies.json_response(_flat(response, named))

    async def _chunks(self, parsed: ParsedRequest, named: bool) -> AsyncGenerator[bytes, None]:
        formatter = Formatter(parsed)
        async with aclosing(self._service.generate(parsed.request)) as events:
            async for event in events:
                try:
                    responses = formatter.push(event)
                except Fault as fault:
                    raise sse.FramedFaultError(fault) from None
                for response in responses:
                    if response.tensors:
                        yield sse.event(_flat(response, named))


def _unwrapped(data: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor of one element may be written as a list of it."""
    return {
        name: value[0] if _is_single(value) and name != "messages" else value for name, value in data.items()
    }


def _is_single(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict | list)


def _flat(response: OutputTensors, named: bool) -> dict[str, Any]:
    flat: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if named:
        flat["id"] = response.request_id
    for tensor in response.tensors:
        elements = values(tensor)
        flat[tensor.name] = elements[0] if len(elements) == 1 else elements
    return flat
