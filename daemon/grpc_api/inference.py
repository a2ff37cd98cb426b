"""One inference request: who answers it, and its responses in order. Both infer calls use it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from contract.faults import Fault, FaultKind
from contract.generation import Event
from daemon.grpc_api.messages import check_outputs, parameters_of, tensors_of
from daemon.kserve import lookup, metadata
from daemon.kserve import request as kserve
from daemon.kserve.request import ParsedRequest, Target
from daemon.kserve.response import Formatter, OutputTensors
from daemon.repository.status import ModelStatus
from daemon.service.facade import Service

EMPTY_FINAL = "triton_enable_empty_final_response"


class Inference(msgspec.Struct, frozen=True):
    """A request that is understood and has a ready model."""

    parsed: ParsedRequest
    wants_empty_final: bool


def accept(service: Service, request: Any, caller: str) -> Inference:
    """Understand a ``ModelInferRequest``. Raises ``Fault``."""
    status = find(service, request.model_name, request.model_version)
    check_outputs(request, (spec.name for spec in metadata.TEXT_MODEL_OUTPUTS))
    parameters = parameters_of(request.parameters)
    target = Target(status.name, status.version, request.id or uuid.uuid4().hex, caller)
    parsed = kserve.parse(target, tensors_of(request), parameters)
    return Inference(parsed, bool(parameters.get(EMPTY_FINAL, False)))


async def collected(service: Service, inference: Inference) -> OutputTensors:
    """The whole answer as one final response. Closing the task cancels in the engine. Raises ``Fault``."""
    async with aclosing(service.generate(inference.parsed.request)) as events:
        return await Formatter(inference.parsed).collect(events)


async def responses(
    inference: Inference, started: Event, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[OutputTensors, None]:
    """The responses after the first event, the flag-only last one only if asked for. Raises ``Fault``."""
    formatter = Formatter(inference.parsed)
    formatter.push(started)
    if not inference.parsed.stream:
        # As vLLM's backend does it: the data comes together with the final flag.
        yield await formatter.collect(events)
        return
    async for event in events:
        for output in formatter.push(event):
            if output.tensors or inference.wants_empty_final:
                yield output


def find(service: Service, name: str, version: str) -> ModelStatus:
    """The ready version that answers; no name means the default model. Raises ``Fault``."""
    check_version(name, version)
    return lookup.find(service, name, version) if name else service.find(None, version)


def check_version(name: str, version: str) -> None:
    if version and not (version.isascii() and version.isdigit()):
        message = f"failed to get model version from specified version string '{version}' for model '{name}'"
        raise Fault(FaultKind.INVALID_REQUEST, message, "a version is a number")
