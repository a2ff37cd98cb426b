"""Named tensors and parameters of one inference request, to a generate request.

Speaks the tensors of Triton's vLLM backend, takes every sampling parameter as a scalar of its own as well
(the TensorRT-LLM manner), and one extension: ``messages``, a chat in OpenAI's form. Values may be strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import Field

from contract import tensors as codec
from contract.faults import Fault, FaultKind
from contract.generation import GenerateRequest, Sampling
from contract.tensors import Tensor
from daemon.kserve import fields
from daemon.kserve.chat import parse_messages
from daemon.kserve.sampling import SamplingFields, urgency

DEFAULT_MAX_TOKENS = 16
"""The length default of vLLM's sampling parameters."""

TEXT_INPUTS = ("text_input", "messages", "sampling_parameters")
FLAG_INPUTS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)

OUTPUTS = (
    "text_output",
    "finish_reason",
    "cumulative_logprob",
    "logprobs",
    "num_input_tokens",
    "num_output_tokens",
)

_ALIASES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "min_length": "min_tokens",
    "num_return_sequences": "n",
    "random_seed": "seed",
    "return_log_probs": "return_logprobs",
    "stop_words": "stop",
}
_TRANSPORT_PARAMETERS = frozenset(
    ("binary_data_output", "triton_enable_empty_final_response", "triton_final_response", "headers")
)
"""Parameters a transport has dealt with, or that say nothing about generation."""


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer holds beside the text."""

    include_input: bool = False
    finish_reason: bool = False
    cumulative_logprob: bool = False
    logprobs: bool = False
    num_input_tokens: bool = False
    num_output_tokens: bool = False


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    request: GenerateRequest
    stream: bool
    """Answer with a response per delta rather than once with the whole text."""
    options: OutputOptions


class RequestFields(SamplingFields):
    """Everything that may be asked, whether as tensor, parameter or inside ``sampling_parameters``."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **SamplingFields.unsupported,
        "batch_size": (1,),
        "beam_width": (1, "1"),
        "classification": (),
        "details": (False,),
        "detokenize": (True,),
        "embedding_request": ("",),
        "end_id": (),
        "image": ([], ""),
        "pad_id": (),
        "sequence_end": (False,),
        "sequence_id": (0, ""),
        "sequence_start": (False,),
        "typical_p": (1.0,),
        "watermark": (False,),
    }

    stream: bool = False
    exclude_input_in_output: bool | None = None
    return_finish_reason: bool = False
    return_cumulative_logprob: bool = False
    return_logprobs: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    do_sample: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    lora_name: str | None = None
    timeout: Annotated[int, Field(ge=0)] | None = None


class Target(msgspec.Struct, frozen=True):
    """Whom a request is for."""

    model: str
    version: str
    request_id: str
    caller: str = ""


def parse(target: Target, tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> ParsedRequest:
    """The request of an ``infer``: tensors win over parameters. Raises ``Fault``."""
    known = _known_inputs()
    values: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name not in known:
            message = f"unexpected inference input '{name}' for model '{target.model}'"
            raise codec.invalid(message, "see the inputs in GET /v2/models/MODEL")
        values[name] = _plain(tensor, target.model)
    return parse_values(target, {**parameters, **values})


def parse_values(target: Target, values: Mapping[str, Any]) -> ParsedRequest:
    """The request of a ``generate``, whose inputs are plain JSON values. Raises ``Fault``."""
    given = {name: value for name, value in values.items() if name not in _TRANSPORT_PARAMETERS}
    text, messages = given.pop("text_input", None), given.pop("messages", None)
    asked = _checked(_sampling_parameters(given.pop("sampling_parameters", None)), given)
    if asked.stream and asked.exclude_input_in_output is False:
        raise codec.invalid("When streaming, `exclude_input_in_output` = False is not allowed.")
    request = GenerateRequest(
        request_id=target.request_id,
        dialect="triton",
        model=_model_name(target, asked),
        sampling=_sampling(asked),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        n=asked.n or 1,
        skip_special_tokens=not asked.keeps_special_tokens,
        truncate_prompt=asked.truncate_prompt_tokens,
        priority=_priority(asked, given),
        caller=target.caller,
        timeout_s=asked.timeout / 1e6 if asked.timeout else None,
    )
    _set_prompt(request, target.model, text, messages)
    # An answer to a chat has no input to repeat: the rendered template is not what was sent.
    include_input = not asked.stream and asked.exclude_input_in_output is not True and messages is None
    return ParsedRequest(request=request, stream=asked.stream, options=_options(asked, include_input))


def flags_for(outputs: Iterable[str]) -> dict[str, bool]:
    """Parameters that make the outputs a request names appear in its answer."""
    return {f"return_{name}": True for name in outputs if name != "text_output"}


def _known_inputs() -> frozenset[str]:
    return frozenset((*TEXT_INPUTS, *RequestFields.model_fields, *RequestFields.unsupported, *_ALIASES))


def _plain(tensor: Tensor, model: str) -> Any:
    expected = "BYTES" if tensor.name in TEXT_INPUTS else "BOOL" if tensor.name in FLAG_INPUTS else None
    if expected is not None and tensor.datatype != expected and tensor.datatype in codec.DATATYPES:
        message = (
            f"inference input '{tensor.name}' data-type is '{tensor.datatype}', "
            f"but model '{model}' expects '{expected}'"
        )
        raise codec.invalid(message)
    elements = codec.values(tensor)
    if tensor.name in ("stop", "stop_words", "stop_token_ids", "bad_words", "image"):
        return elements
    if len(elements) != 1:
        message = (
            f"unexpected shape for input '{tensor.name}' for model '{model}'. "
            f"Expected [1], got {tensor.shape}"
        )
        raise codec.invalid(message, "one prompt a request")
    return elements[0]


def _sampling_parameters(value: Any) -> dict[str, Any]:
    """The parameters as JSON text, as vLLM's backend wants them, or as the object people send."""
    if isinstance(value, str) and value.strip():
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise codec.invalid(f"sampling_parameters: not valid JSON: {error}") from None
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise codec.invalid("sampling_parameters: must be a JSON object, or a string holding one")
    return value


def _checked(base: Mapping[str, Any], given: Mapping[str, Any]) -> RequestFields:
    merged = {_ALIASES.get(name, name): value for name, value in {**base, **given}.items()}
    return fields.parse(
        RequestFields, {name: _decoded(name, value) for name, value in merged.items()}, strict=False
    )


def _decoded(name: str, value: Any) -> Any:
    """gRPC parameters and vLLM's habit send lists as JSON text."""
    if name in ("stop", "stop_token_ids") and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return value


def _model_name(target: Target, asked: RequestFields) -> str:
    # An adapter is a served name of its own.
    name = asked.lora_name or target.model
    return f"{name}@{target.version}" if target.version else name


def _sampling(asked: RequestFields) -> Sampling:
    logprobs = asked.logprobs
    if logprobs is None and (asked.return_logprobs or asked.return_cumulative_logprob):
        logprobs = 0
    sampling = asked.sampling(logprobs=logprobs, prompt_logprobs=asked.prompt_logprobs)
    return msgspec.structs.replace(sampling, do_sample=asked.do_sample)


def _priority(asked: RequestFields, given: Mapping[str, Any]) -> int:
    """The request parameter is a level of Triton's; among the sampling parameters it has vLLM's meaning."""
    if "priority" not in given:
        return asked.priority or 0
    if (asked.priority or 0) < 0:
        raise codec.invalid("priority: must be a level from 1, the most urgent; 0 and 5 are normal")
    return urgency(asked.priority)


def _set_prompt(request: GenerateRequest, model: str, text: Any, messages: Any) -> None:
    if text is not None and messages is not None:
        raise codec.invalid("'text_input' and 'messages' exclude each other", "send one of them")
    if messages is not None:
        request.messages = parse_messages(_json_messages(messages))
    elif isinstance(text, str):
        request.text = text
    elif isinstance(text, list) and len(text) == 1 and isinstance(text[0], str):
        request.text = text[0]
    elif text is None:
        message = (
            f"expected 1 inputs but got 0 inputs for model '{model}'. Got input(s) [], but missing required "
            "input(s) ['text_input']. Please provide all required input(s)."
        )
        raise codec.invalid(message)
    else:
        raise codec.invalid("text_input: must be one string")


def _json_messages(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"messages: not valid JSON: {error}"
        raise Fault(FaultKind.INVALID_REQUEST, message, 'send [{"role": "user", "content": "..."}]') from None


def _options(asked: RequestFields, include_input: bool) -> OutputOptions:
    return OutputOptions(
        include_input=include_input,
        finish_reason=asked.return_finish_reason,
        cumulative_logprob=asked.return_cumulative_logprob,
        logprobs=asked.return_logprobs,
        num_input_tokens=asked.return_num_input_tokens,
        num_output_tokens=asked.return_num_output_tokens,
    )
