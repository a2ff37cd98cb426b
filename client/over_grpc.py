"""The transport over gRPC: Triton's protocol with tritonclient's own generated code.

Imported only when a gRPC address is used, because the generated code brings numpy and grpc with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from client.address import Address
from client.errors import (
    ClientError,
    ConnectError,
    ConnectionLostError,
    ProtocolError,
    RequestError,
    UnauthenticatedError,
)
from client.grpc_errors import error_of_status, fault_of_trailer
from client.options import invalid
from client.perplexity import Tokens
from client.protocol_probe import wrong_protocol
from client.results import UNAVAILABLE, Chunk, Health, ModelCard
from client.transport import message_fields, sampling_fields
from contract import tensors
from contract.faults import Fault
from contract.generation import GenerateRequest, Usage
from contract.tensors import Tensor

_CONNECT_TIMEOUT_S = 5.0
_RECONNECT_PATIENCE_S = 0.3
_TRAILER_TIMEOUT_S = 2.0
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_BROKEN = "Internal error from Core"
"""What grpc.aio says when the call ended while it was sending."""
_REST_OF_CONTEXT = 2**31 - 1
"""More than any context: Triton's dialect has no word for "as many as fit", and shortens what does not."""
_FLAGS = (
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
)


class GrpcTransport:
    """Speaks to a daemon's gRPC port. Belongs to the event loop it was made on."""

    def __init__(self, address: Address, api_key: str | None) -> None:
        self._address = address
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0 if address.is_loopback else 1)]
        if address.scheme == "grpcs":
            self._channel = grpc.aio.secure_channel(address.target, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.aio.insecure_channel(address.target, options)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    async def generate(self, request: GenerateRequest, *, stream: bool) -> AsyncGenerator[Chunk, None]:
        message = _message(request, stream)
        await self._connect()
        call = self._stub.ModelStreamInfer(iter((message,)), metadata=self._metadata)
        reader = _Reader(request.request_id)
        try:
            async for response in call:
                if response.error_message:
                    raise await _error_of_message(call, response.error_message, request.request_id)
                yield reader.chunk(response.infer_response)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, request.request_id) from error
        finally:
            call.cancel()
        if not reader.finished:
            message = "the server ended the stream before the answer was complete"
            raise ConnectionLostError(message, request_id=request.request_id)

    async def models(self) -> list[ModelCard]:
        index = await self._ask(self._stub.RepositoryIndex, pb.RepositoryIndexRequest())
        cards: list[ModelCard] = []
        adapters: dict[str, ModelCard] = {}
        for entry in index.models:
            length, names = await self._facts(entry)
            cards.append(
                ModelCard(
                    name=entry.name,
                    version=entry.version,
                    state=entry.state or UNAVAILABLE,
                    reason=entry.reason,
                    context_len=length,
                )
            )
            for name in names:
                adapters[name] = ModelCard(name=name, context_len=length, parent=entry.name)
        return [*cards, *adapters.values()]

    async def _facts(self, entry: Any) -> tuple[int | None, list[str]]:
        """The context length and the adapters of a ready model, where its configuration names them."""
        if entry.state != "READY":
            return None, []
        asked = pb.ModelConfigRequest(name=entry.name, version=entry.version)
        try:
            parameters = (await self._ask(self._stub.ModelConfig, asked)).config.parameters
            length = parameters["context_len"].string_value if "context_len" in parameters else "0"
            names = parameters["adapters"].string_value if "adapters" in parameters else "[]"
            return int(length) or None, list(map(str, json.loads(names)))
        except (RequestError, ValueError, TypeError):  # unloaded meanwhile, or another server's parameters
            return None, []

    async def load(self, model: str) -> None:
        await self._ask(self._stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=model))

    async def unload(self, model: str) -> None:
        await self._ask(self._stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=model))

    async def load_adapter(self, model: str | None, name: str, folder: str) -> None:
        raise invalid("Triton's gRPC protocol has no word for adapters: use HTTP")

    async def unload_adapter(self, name: str) -> None:
        raise invalid("Triton's gRPC protocol has no word for adapters: use HTTP")

    async def tokenize(self, text: str, model: str | None) -> Tokens:
        raise invalid("Triton's gRPC protocol has no word for tokens: use HTTP")

    async def score(self, ids: Sequence[int], model: str | None) -> list[float]:
        raise invalid("log-probabilities cannot be had over gRPC", "ask over HTTP: http://HOST:1025")

    async def health(self, model: str | None) -> Health:
        live = (await self._ask(self._stub.ServerLive, pb.ServerLiveRequest())).live
        ready = (await self._ask(self._stub.ServerReady, pb.ServerReadyRequest())).ready
        server = await self._server()
        if model is None:
            return Health(live=live, ready=ready, server=server)
        name, _, version = model.partition("@")
        answer = await self._ask(self._stub.ModelReady, pb.ModelReadyRequest(name=name, version=version))
        return Health(live=live, ready=ready, model=model, model_ready=answer.ready, server=server)

    async def _server(self) -> str:
        """Name and version, for which a daemon wants a key, as it does not for health."""
        try:
            metadata = await self._ask(self._stub.ServerMetadata, pb.ServerMetadataRequest())
        except UnauthenticatedError:
            return ""
        return f"{metadata.name} {metadata.version}".strip()

    async def aclose(self) -> None:
        await self._channel.close()

    async def _ask(self, method: Any, message: Any) -> Any:
        await self._connect()
        try:
            return await method(message, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, "") from error

    async def _connect(self) -> None:
        """Wait for the connection, so that "nobody is there" is told apart from "not ready"."""
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._connected()
        except TimeoutError:
            message = f"no server answers at {self._address}"
            raise await wrong_protocol(self._address) or ConnectError(message) from None

    async def _connected(self) -> None:
        state = self._channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            # Reported until a connection stands; attempts go on underneath.
            async with asyncio.timeout(_RECONNECT_PATIENCE_S):
                await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                raise ConnectError("the client is closed", "make a new one")
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                message = f"no server answers at {self._address}: the connection is refused"
                raise await wrong_protocol(self._address) or ConnectError(message)
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)

    def _error(self, error: grpc.aio.AioRpcError, request_id: str) -> ClientError:
        fault = fault_of_trailer(error.trailing_metadata())
        if fault is None and (error.code() is grpc.StatusCode.UNAVAILABLE or error.details() == _BROKEN):
            message = f"the connection to {self._address} broke: {error.details()}"
            return ConnectionLostError(message, request_id=request_id)
        return error_of_status(error.code(), error.details() or "", fault, request_id)


class _Reader:
    """Output tensors of one answer, to chunks."""

    def __init__(self, request_id: str) -> None:
        self.finished = False
        self._request_id = request_id
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def chunk(self, response: Any) -> Chunk:
        values = self._values(response)
        self._prompt_tokens = values.get("num_input_tokens", self._prompt_tokens)
        self._completion_tokens += values.get("num_output_tokens", 0)
        # vLLM's backend writes the text "None" while an answer goes on.
        reason = values.get("finish_reason", "None")
        finish_reason = None if reason in {"None", ""} else reason
        self.finished = self.finished or finish_reason is not None
        counted = finish_reason is not None and self._prompt_tokens > 0
        return Chunk(
            text=values.get("text_output", ""),
            finish_reason=finish_reason,
            usage=Usage(self._prompt_tokens, self._completion_tokens) if counted else None,
            model=response.model_name,
        )

    def _values(self, response: Any) -> dict[str, Any]:
        """The first element of each output: one prompt has one answer here."""
        values: dict[str, Any] = {}
        try:
            for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
                elements = tensors.values(Tensor(output.name, output.datatype, list(output.shape), data))
                if elements:
                    values[output.name] = elements[0]
        except (Fault, ValueError) as error:
            message = f"the server's tensors cannot be read: {error}"
            raise ProtocolError(message, request_id=self._request_id) from None
        return values


async def _error_of_message(call: Any, message: str, request_id: str) -> ClientError:
    """An error that came as a message of the stream. What kind it is, the daemon says in the trailer."""
    try:
        async with asyncio.timeout(_TRAILER_TIMEOUT_S):
            fault = fault_of_trailer(await call.trailing_metadata())
    except TimeoutError:
        fault = None
    return error_of_status(grpc.StatusCode.UNKNOWN, message, fault, request_id)


def _message(request: GenerateRequest, stream: bool) -> Any:
    if request.sampling.logprobs is not None:
        raise invalid("log-probabilities cannot be had over gRPC", "ask over HTTP: http://HOST:1025")
    name, _, version = (request.model or "").partition("@")
    message = pb.ModelInferRequest(model_name=name, model_version=version, id=request.request_id)
    if request.messages is None:
        _add(message, tensors.string_tensor("text_input", [request.text or ""]))
    else:
        chat = json.dumps(message_fields(request), ensure_ascii=False)
        _add(message, tensors.string_tensor("messages", [chat]))
    sampling = sampling_fields(request)
    if sampling["max_tokens"] is None:
        sampling["max_tokens"] = _REST_OF_CONTEXT
    _add(message, tensors.string_tensor("sampling_parameters", [json.dumps(sampling, ensure_ascii=False)]))
    _add(message, tensors.number_tensor("stream", "BOOL", [stream]))
    for flag in _FLAGS:
        _add(message, tensors.number_tensor(flag, "BOOL", [True]))
    return message


def _add(message: Any, tensor: Tensor) -> None:
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    message.raw_input_contents.append(tensor.data)
