"""tritonclient's messages, to and from tensors, parameters and dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from contract.tensors import Tensor, check, from_values, invalid, pack_bytes
from daemon.kserve.response import OutputTensors

_TYPED_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where a tensor's values are when they are not sent raw."""


def tensors_of(request: Any) -> dict[str, Tensor]:
    """The input tensors, raw or typed. Raises ``Fault`` with Triton's words."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        message = f"expected {len(request.inputs)} raw_input_contents, got {len(raw)}"
        raise invalid(message, "send all inputs raw, or none")
    tensors: dict[str, Tensor] = {}
    for position, entry in enumerate(request.inputs):
        if entry.name in tensors:
            raise invalid(f"input '{entry.name}' already exists in request")
        if "shared_memory_region" in entry.parameters:
            raise invalid(
                f"input '{entry.name}': shared memory is not offered", "send the data in the request"
            )
        tensors[entry.name] = _raw(entry, raw[position]) if raw else _typed(entry)
    return tensors


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Request parameters as plain values."""
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        which = parameter.WhichOneof("parameter_choice")
        if which is None:
            raise invalid(f"parameter '{name}' has no value")
        values[name] = getattr(parameter, which)
    return values


def infer_response(output: OutputTensors, request: Any) -> Any:
    """A response, with the tensors that were asked for: all of them if none are named."""
    wanted = {entry.name for entry in request.outputs}
    response = pb.ModelInferResponse(model_name=output.model, model_version=output.version, id=request.id)
    for tensor in output.tensors:
        if not wanted or tensor.name in wanted:
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(tensor.data)
    return response


def check_outputs(request: Any, known: Iterable[str]) -> None:
    """Every requested output exists. Raises ``Fault``."""
    names = set(known)
    for entry in request.outputs:
        if entry.name not in names:
            message = f"unexpected inference output '{entry.name}' for model '{request.model_name}'"
            raise invalid(message, f"one of: {', '.join(sorted(names))}")


def _raw(entry: Any, data: bytes) -> Tensor:
    if entry.HasField("contents"):
        message = f"contents field must not be specified when using raw_input_contents for '{entry.name}'"
        raise invalid(message)
    tensor = Tensor(entry.name, entry.datatype, list(entry.shape), data)
    check(tensor)
    return tensor


def _typed(entry: Any) -> Tensor:
    field = _TYPED_FIELDS.get(entry.datatype)
    values = list(getattr(entry.contents, field)) if field else []
    if entry.datatype != "BYTES":
        return from_values(entry.name, entry.datatype, list(entry.shape), values)
    tensor = Tensor(entry.name, "BYTES", list(entry.shape), pack_bytes(values))
    check(tensor)
    return tensor
