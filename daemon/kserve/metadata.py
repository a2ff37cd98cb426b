"""What a model looks like to a KServe client: metadata, Triton's model configuration, repository index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2

from contract.faults import Fault, FaultKind
from daemon.repository.status import ModelStatus, State

SERVER_NAME = "mindport"
EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "generate",
)


class TensorSpec(NamedTuple):
    name: str
    datatype: str
    """KServe's word: ``BYTES``, not ``TYPE_STRING``."""
    shape: tuple[int, ...]
    optional: bool = False


TEXT_MODEL_INPUTS = (
    # Optional in fact: `messages` may stand in its place.
    TensorSpec("text_input", "BYTES", (1,), optional=True),
    TensorSpec("messages", "BYTES", (1,), optional=True),
    TensorSpec("stream", "BOOL", (1,), optional=True),
    TensorSpec("sampling_parameters", "BYTES", (1,), optional=True),
    TensorSpec("exclude_input_in_output", "BOOL", (1,), optional=True),
    TensorSpec("return_finish_reason", "BOOL", (1,), optional=True),
    TensorSpec("return_cumulative_logprob", "BOOL", (1,), optional=True),
    TensorSpec("return_logprobs", "BOOL", (1,), optional=True),
    TensorSpec("return_num_input_tokens", "BOOL", (1,), optional=True),
    TensorSpec("return_num_output_tokens", "BOOL", (1,), optional=True),
)
TEXT_MODEL_OUTPUTS = (
    TensorSpec("text_output", "BYTES", (-1,)),
    TensorSpec("finish_reason", "BYTES", (-1,)),
    TensorSpec("cumulative_logprob", "FP32", (-1,)),
    TensorSpec("logprobs", "BYTES", (-1,)),
    TensorSpec("num_input_tokens", "UINT32", (1,)),
    TensorSpec("num_output_tokens", "UINT32", (-1,)),
)

_STATES: Mapping[State, str] = {
    State.LISTED: "",
    State.LOADING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.BROKEN: "UNAVAILABLE",
    State.RESTARTING: "LOADING",
}


def server_metadata(version: str) -> dict[str, Any]:
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(status: ModelStatus, versions: Sequence[str] = ()) -> dict[str, Any]:
    """KServe's model metadata; ``versions`` are the ready ones, by default this one."""
    config = model_config_proto(status)
    batched = config.max_batch_size > 0
    return {
        "name": status.name,
        "versions": list(versions) or [status.version],
        "platform": config.platform or config.backend,
        "inputs": [_metadata_tensor(tensor, batched) for tensor in config.input],
        "outputs": [_metadata_tensor(tensor, batched) for tensor in config.output],
    }


def model_config(status: ModelStatus) -> dict[str, Any]:
    """Triton's model configuration as its HTTP endpoint prints it: every field, numbers as numbers."""
    config = model_config_proto(status)
    data = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(data, model_config_pb2.ModelConfig.DESCRIPTOR)


def model_config_proto(status: ModelStatus) -> Any:
    """The ``ModelConfig`` message: ``config.pbtxt`` where the model has one, completed with what is known.

    A backend that declares tensors of its own puts its configuration into ``details["model_config"]``. What
    Triton has no field for is among the parameters: the length of the context and the names of adapters.
    """
    declared = status.details.get("model_config")
    if isinstance(declared, Mapping):
        config = json_format.ParseDict(
            dict(declared), model_config_pb2.ModelConfig(), ignore_unknown_fields=True
        )
    else:
        config = _from_file(status)
    config.name = status.name
    if not config.backend and not config.platform:
        config.backend = status.backend
    if not config.input and not config.output:
        _add_text_tensors(config)
    if status.context_len:
        config.parameters["context_len"].string_value = str(status.context_len)
    if status.adapters:
        config.parameters["adapters"].string_value = json.dumps(status.adapters, ensure_ascii=False)
    return config


def repository_index(statuses: Iterable[ModelStatus], *, ready_only: bool = False) -> list[dict[str, str]]:
    """Triton's index: a version each; a model that was never asked for appears by its name alone."""
    index: list[dict[str, str]] = []
    for status in statuses:
        if ready_only and status.state is not State.READY:
            continue
        if status.state is State.LISTED:
            index.append({"name": status.name})
            continue
        reason = status.reason or ("unloaded" if status.state is State.UNLOADED else "")
        index.append(
            {"name": status.name, "version": status.version, "state": _STATES[status.state], "reason": reason}
        )
    return index


def _from_file(status: ModelStatus) -> Any:
    config = model_config_pb2.ModelConfig()
    path = Path(status.directory).parent / "config.pbtxt"
    if not status.directory or not path.is_file():
        return config
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        hint = "correct it, or package the model again with: builder package --replace"
        raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error}", hint) from None


def _add_text_tensors(config: Any) -> None:
    for spec in TEXT_MODEL_INPUTS:
        config.input.add(
            name=spec.name, data_type=_data_type(spec.datatype), dims=spec.shape, optional=spec.optional
        )
    for spec in TEXT_MODEL_OUTPUTS:
        config.output.add(name=spec.name, data_type=_data_type(spec.datatype), dims=spec.shape)
    config.model_transaction_policy.decoupled = True


def _data_type(datatype: str) -> int:
    name = "STRING" if datatype == "BYTES" else datatype
    return int(model_config_pb2.DataType.Value(f"TYPE_{name}"))


def _metadata_tensor(tensor: Any, batched: bool) -> dict[str, Any]:
    name = str(model_config_pb2.DataType.Name(tensor.data_type)).removeprefix("TYPE_")
    shape = [-1, *tensor.dims] if batched else list(tensor.dims)
    return {"name": tensor.name, "datatype": "BYTES" if name == "STRING" else name, "shape": shape}


def _with_numbers(data: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """protobuf's JSON writes 64-bit integers as strings; Triton writes numbers."""
    return {name: _number(value, descriptor.fields_by_name[name]) for name, value in data.items()}


def _number(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, list):
        return [_number(element, field) for element in value]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_field = field.message_type.fields_by_name["value"]
        return {key: _number(element, value_field) for key, element in value.items()}
    if field.message_type is not None:
        return _with_numbers(value, field.message_type)
    is_wide = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    return int(value) if is_wide else value
