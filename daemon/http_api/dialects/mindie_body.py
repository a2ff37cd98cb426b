"""Bodies of MindIE's and TGI's generate endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import Field

from contract.faults import Fault, FaultKind
from contract.generation import GenerateRequest, Sampling
from daemon.http_api.options import GenerateFlavour
from daemon.kserve import fields
from daemon.kserve.fields import Fields
from daemon.kserve.sampling import Penalty, Positive, Seed, StopStrings, urgency

DEFAULT_MAX_NEW_TOKENS = 20


class GenerateFields(Fields):
    inputs: Annotated[str, Field(min_length=1)]
    parameters: dict[str, Any] | None = None
    stream: bool | None = None


class ParameterFields(Fields):
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "grammar": (),
        "typical_p": (1.0,),
        "watermark": (False,),
    }

    do_sample: bool | None = None
    max_new_tokens: Positive | None = None
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    top_k: Positive | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopStrings | None = None
    truncate: Positive | None = None
    adapter_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_./-]{1,256}$")] | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    return_full_text: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=20)] | None = None
    priority: Annotated[int, Field(ge=1, le=5)] | None = None
    timeout: Annotated[int, Field(gt=0, le=65535)] | None = None


class Generate(msgspec.Struct):
    """A parsed body."""

    request: GenerateRequest
    stream: bool
    details: bool
    prefill: bool
    full_text: bool
    top_n: int


def parse(
    data: Mapping[str, Any],
    request_id: str,
    model: str | None,
    flavour: GenerateFlavour,
    *,
    stream: bool | None,
) -> Generate:
    """The body as a generate request; ``stream`` overrides what it says. Raises ``Fault``."""
    body = fields.parse(GenerateFields, data)
    asked = fields.parse(ParameterFields, body.parameters or {}, "parameters.")
    streams = bool(body.stream) if stream is None else stream
    if streams and asked.decoder_input_details:
        message = "parameters.decoder_input_details: cannot be streamed"
        raise Fault(FaultKind.INVALID_REQUEST, message, 'send it without "stream": true')
    details = bool(asked.details) or bool(asked.decoder_input_details)
    # TGI reports log-probabilities with every token it shows; MindIE writes null.
    shows_logprobs = flavour == "tgi" and (streams or details)
    request = GenerateRequest(
        request_id=request_id,
        dialect=flavour,
        model=asked.adapter_id or model,
        text=body.inputs,
        sampling=_sampling(asked, shows_logprobs),
        default_max_tokens=DEFAULT_MAX_NEW_TOKENS,
        skip_special_tokens=asked.skip_special_tokens is not False,
        truncate_prompt=asked.truncate,
        priority=urgency(asked.priority),
        timeout_s=float(asked.timeout) if asked.timeout else None,
    )
    return Generate(
        request=request,
        stream=streams,
        details=details,
        prefill=bool(asked.decoder_input_details),
        full_text=bool(asked.return_full_text),
        top_n=asked.top_n_tokens or 0,
    )


def _sampling(asked: ParameterFields, shows_logprobs: bool) -> Sampling:
    return Sampling(
        max_tokens=asked.max_new_tokens,
        do_sample=asked.do_sample,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        repetition_penalty=asked.repetition_penalty,
        frequency_penalty=asked.frequency_penalty,
        seed=asked.seed,
        stop=tuple(asked.stop or ()),
        ignore_eos=bool(asked.ignore_eos),
        logprobs=(asked.top_n_tokens or 0) if shows_logprobs else None,
        prompt_logprobs=0 if shows_logprobs and asked.decoder_input_details else None,
    )
