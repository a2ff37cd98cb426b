"""``infer`` with JSON or binary tensors. The responses of a text model are gathered into one."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from contract import tensors as codec
from contract.tensors import HEADER_LENGTH, Tensor, string_tensor
from daemon.http_api import bodies
from daemon.http_api.dialects.triton.path import target_of
from daemon.http_api.errors import Family
from daemon.http_api.exchange import Computed
from daemon.http_api.options import HttpOptions
from daemon.kserve import fields, lookup
from daemon.kserve import request as kserve_request
from daemon.kserve.fields import Fields
from daemon.kserve.response import Formatter, OutputTensors
from daemon.service.facade import Service


class InferFields(Fields):
    id: str | None = None
    inputs: Any = None
    outputs: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] | None = None


class OutputParameters(Fields):
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "classification": (0,),
        "shared_memory_byte_size": (),
        "shared_memory_offset": (),
        "shared_memory_region": (),
    }

    binary_data: bool | None = None


class Wanted(msgspec.Struct):
    """How the caller wants the answer."""

    names: list[str]
    """Outputs in the answer; none: all."""
    binary: dict[str, bool]
    binary_default: bool
    encoding: str
    named: bool
    """The caller gave an id and gets it back."""


class Infer:
    def __init__(self, service: Service, options: HttpOptions) -> None:
        self._service = service
        self._options = options

    async def infer(self, request: Request) -> Response:
        body, tensors = await self._read(request)
        parameters = dict(body.parameters or {})
        wanted = _wanted(body, parameters, request.headers.get("accept-encoding", ""))
        target = target_of(request, body.id or "")
        parameters = {**kserve_request.flags_for(wanted.names), **parameters}
        parsed = kserve_request.parse(target, tensors, parameters)
        lookup.find(self._service, target.model, target.version)
        return Computed(Family.TRITON, lambda: self._complete(parsed, wanted))

    async def _read(self, request: Request) -> tuple[InferFields, Mapping[str, Tensor]]:
        data = await bodies.read(request, self._options)
        header = request.headers.get(HEADER_LENGTH)
        if header == "0":
            # A raw request: the whole body is the one input.
            return InferFields(parameters={"binary_data_output": True}), {"text_input": _raw_text(data)}
        head, binary = codec.split_body(data, header)
        body = fields.parse(InferFields, bodies.decode_object(head, self._options))
        if body.inputs is None:
            raise codec.invalid("Unable to parse 'inputs': attempt to access non-existing object 'inputs'")
        return body, codec.decode(body.inputs, binary)

    async def _complete(self, parsed: kserve_request.ParsedRequest, wanted: Wanted) -> Response:
        async with aclosing(self._service.generate(parsed.request)) as events:
            response = await Formatter(parsed).collect(events)
        return _response(response, wanted)


def _wanted(body: InferFields, parameters: dict[str, Any], accept_encoding: str) -> Wanted:
    outputs = body.outputs or []
    names = [output.get("name") for output in outputs]
    known = kserve_request.OUTPUTS
    binary: dict[str, bool] = {}
    for output, name in zip(outputs, names, strict=True):
        if name not in known:
            raise codec.invalid(f"unexpected inference output '{name}'", f"one of: {', '.join(known)}")
        asked = fields.parse(OutputParameters, output.get("parameters") or {}, "outputs.parameters.")
        if asked.binary_data is not None:
            binary[name] = asked.binary_data
    if len(set(names)) != len(names):
        raise codec.invalid("an output is requested twice")
    default = parameters.pop("binary_data_output", False) is True
    return Wanted(
        [str(name) for name in names], binary, default, _encoding(accept_encoding), body.id is not None
    )


def _encoding(accepted: str) -> str:
    for item in accepted.lower().split(","):
        name, _, weight = item.strip().partition(";")
        if name.strip() in ("gzip", "deflate") and weight.strip() != "q=0":
            return name.strip()
    return ""


def _response(response: OutputTensors, wanted: Wanted) -> Response:
    tensors = [tensor for tensor in response.tensors if not wanted.names or tensor.name in wanted.names]
    binary = [tensor.name for tensor in tensors if wanted.binary.get(tensor.name, wanted.binary_default)]
    entries, raw = codec.encode(tensors, binary)
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if wanted.named:
        head["id"] = response.request_id
    content = msgspec.json.encode({**head, "outputs": entries})
    headers = {"Content-Type": "application/json"}
    if binary:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(content))}
    content += raw
    if wanted.encoding:
        headers["Content-Encoding"] = wanted.encoding
        content = gzip.compress(content, 1) if wanted.encoding == "gzip" else zlib.compress(content, 1)
    return Response(content, headers=headers)


def _raw_text(data: bytes) -> Tensor:
    try:
        return string_tensor("text_input", [data.decode()])
    except UnicodeDecodeError:
        raise codec.invalid("input 'text_input' is not UTF-8 text") from None
