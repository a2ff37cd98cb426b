"""``ModelStreamInfer``: many requests and their responses on one stream, as Triton orders them.

Responses of one request keep their order, those of several interleave; the id tells them apart. An error is a
message and the stream stays open, unless the caller's metadata asks for ``triton_grpc_error``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from contract.faults import Fault
from daemon.grpc_api.errors import trailer_of, unexpected
from daemon.grpc_api.inference import accept, responses
from daemon.grpc_api.messages import infer_response
from daemon.kserve.response import OutputTensors
from daemon.service.facade import Service

_FINAL = "triton_final_response"
_STRICT = "triton_grpc_error"


class InferStream:
    """One call. Ends when the caller has sent all and got all, or the server stops."""

    def __init__(
        self,
        service: Service,
        context: grpc.aio.ServicerContext[Any, Any],
        stopping: asyncio.Event,
        caller: str,
    ) -> None:
        self._service = service
        self._context = context
        self._stopping = stopping
        self._caller = caller
        self._writing = asyncio.Lock()
        metadata = dict(context.invocation_metadata() or ())
        self._strict = str(metadata.get(_STRICT, "")).lower() == "true"

    async def run(self, requests: AsyncIterator[Any]) -> None:
        """Answer all requests. Raises ``Fault`` only if the caller asked for a status instead of messages."""
        try:
            async with asyncio.TaskGroup() as answers:
                reading = answers.create_task(self._read(requests, answers))
                stopping = answers.create_task(self._stopping.wait())
                await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
                stopping.cancel()
        except BaseExceptionGroup as failed:
            # Not ``except*``: what that raises comes wrapped in a group again.
            asked_for = failed.subgroup(Fault)
            if asked_for is None:
                raise
            raise _first(asked_for) from None

    async def _read(self, requests: AsyncIterator[Any], answers: asyncio.TaskGroup) -> None:
        async for request in requests:
            answers.create_task(self._answer(request))

    async def _answer(self, request: Any) -> None:
        try:
            inference = accept(self._service, request, self._caller)
            async with aclosing(self._service.generate(inference.parsed.request)) as events:
                started = await anext(events)
                await self._respond(request, responses(inference, started, events))
        except Fault as fault:
            await self._write(_message(request, fault), fault)
        except _ModelError as error:
            if self._strict:
                raise error.fault from None
            message = _message(request, error.fault)
            message.infer_response.parameters[_FINAL].bool_param = True
            await self._write(message, error.fault)
        except Exception as error:
            defect = unexpected("ModelStreamInfer", error)
            await self._write(_message(request, defect), defect)

    async def _respond(self, request: Any, outputs: AsyncGenerator[OutputTensors, None]) -> None:
        """Raises ``_ModelError`` for what the engine reports after it has accepted the request."""
        async with aclosing(outputs):
            try:
                async for output in outputs:
                    message = pb.ModelStreamInferResponse(infer_response=infer_response(output, request))
                    message.infer_response.parameters[_FINAL].bool_param = output.final
                    await self._write(message)
            except Fault as fault:
                raise _ModelError(fault) from None

    async def _write(self, message: Any, fault: Fault | None = None) -> None:
        async with self._writing:
            if fault is not None:
                # Status and message alone are Triton's; our own client reads the kind and the hint here.
                self._context.set_trailing_metadata(trailer_of(fault))
            await self._context.write(message)


class _ModelError(Exception):
    """A fault of an accepted request: the kind of error that ``triton_grpc_error`` turns into a status."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def _message(request: Any, fault: Fault) -> Any:
    return pb.ModelStreamInferResponse(
        error_message=str(fault), infer_response=pb.ModelInferResponse(id=request.id)
    )


def _first(group: BaseExceptionGroup[Fault]) -> Fault:
    """Which of several requests failed first is not known; any one tells the caller why the stream ended."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Fault) else unexpected("ModelStreamInfer", RuntimeError(str(error)))
