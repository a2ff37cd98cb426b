"""Sampling with every gap filled: the request, then the model's generation_config.json, then the dialect."""

from __future__ import annotations

from pathlib import Path

import msgspec

from contract.faults import Fault, FaultKind
from contract.generation import GenerateRequest, Sampling
from contract.serving import Serving
from daemon.backends.base import TokenSampling

_SAMPLING_DIALECTS = frozenset({"openai", "vllm"})
"""Where neither request nor model decides, these sample at temperature 1; the others take the likeliest."""
_MOST_LOGPROBS = 20
_LONGEST_STOP = 1024
_LONGEST_STOPS = 4096
_MOST_STOP_IDS = 1024
_REPETITION = (1e-3, 1e3)
"""Beyond, logits overflow in single precision."""


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What generation_config.json says; its other keys do not concern sampling."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def end_ids(self) -> tuple[int, ...]:
        ids = self.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def read_generation_defaults(directory: Path, serving: Serving) -> GenerationDefaults:
    """A version's defaults, with the end tokens of both files. Raises ``Fault``."""
    path = directory / "generation_config.json"
    try:
        defaults = msgspec.json.decode(path.read_bytes(), type=GenerationDefaults)
    except FileNotFoundError:
        defaults = GenerationDefaults()
    except (OSError, msgspec.DecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise Fault(
            FaultKind.INVALID_MODEL, message, "correct the file and package the model again"
        ) from None
    ends = list(dict.fromkeys([*serving.eos_token_ids, *defaults.end_ids]))
    return msgspec.structs.replace(defaults, eos_token_id=ends)


def resolve(request: GenerateRequest, defaults: GenerationDefaults, max_tokens: int) -> TokenSampling:
    """The request's sampling with all defaults applied. Raises ``Fault`` INVALID_REQUEST."""
    asked = request.sampling
    check(asked)
    ends = () if asked.ignore_eos else defaults.end_ids
    repetition = asked.repetition_penalty
    if repetition is None:
        repetition = defaults.repetition_penalty or 1.0
    greedy = not _samples(request, defaults)
    return TokenSampling(
        max_tokens=max_tokens,
        min_tokens=min(asked.min_tokens, max_tokens),
        temperature=0.0 if greedy else _first(asked.temperature, defaults.temperature, 1.0),
        top_k=0 if greedy else max(0, int(_first(asked.top_k, defaults.top_k, 0))),
        top_p=1.0 if greedy else _first(asked.top_p, defaults.top_p, 1.0),
        repetition_penalty=repetition,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        seed=asked.seed,
        stop_token_ids=tuple(dict.fromkeys([*ends, *asked.stop_token_ids])),
        logprobs=asked.logprobs,
        prompt_logprobs=asked.prompt_logprobs,
    )


def _samples(request: GenerateRequest, defaults: GenerationDefaults) -> bool:
    asked = request.sampling
    if asked.temperature == 0:
        return False
    if asked.do_sample is not None:
        return asked.do_sample
    if any(value is not None for value in (asked.temperature, asked.top_k, asked.top_p)):
        return True
    if defaults.do_sample is not None:
        return defaults.do_sample
    return request.dialect in _SAMPLING_DIALECTS


def _first(asked: float | None, default: float | None, neutral: float) -> float:
    return asked if asked is not None else default if default is not None else neutral


def check(sampling: Sampling) -> None:
    """The ranges that hold for every dialect. Raises ``Fault`` INVALID_REQUEST."""
    for field, low, high in _RANGES:
        value = getattr(sampling, field)
        if value is not None and not low <= value <= high:
            upper = "" if high == _ANY else f" and at most {high:g}"
            message = f"{field} must be at least {low:g}{upper}; got {value}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "", {"field": field})
    if sampling.top_p == 0 or sampling.repetition_penalty == 0:
        field = "top_p" if sampling.top_p == 0 else "repetition_penalty"
        raise Fault(FaultKind.INVALID_REQUEST, f"{field} must be greater than 0", "", {"field": field})
    _check_penalty(sampling.repetition_penalty)
    _check_stops(sampling)


def _check_penalty(penalty: float | None) -> None:
    low, high = _REPETITION
    if penalty is not None and not low <= penalty <= high:
        message = f"repetition_penalty must be at least {low:g} and at most {high:g}; got {penalty:g}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "1 is neutral", {"field": "repetition_penalty"})


def _check_stops(sampling: Sampling) -> None:
    if len(sampling.stop_token_ids) > _MOST_STOP_IDS:
        message = f"stop_token_ids may have {_MOST_STOP_IDS} ids; got {len(sampling.stop_token_ids)}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "send fewer", {"field": "stop_token_ids"})
    longest, together = max(map(len, sampling.stop), default=0), sum(map(len, sampling.stop))
    if longest > _LONGEST_STOP or together > _LONGEST_STOPS:
        message = f"stop strings may have {_LONGEST_STOP} characters each and {_LONGEST_STOPS} together"
        raise Fault(FaultKind.INVALID_REQUEST, message, "shorten them", {"field": "stop"})
    if "" in sampling.stop:
        raise Fault(FaultKind.INVALID_REQUEST, "a stop string is empty", "remove it", {"field": "stop"})


_ANY = float("inf")
_RANGES = (
    ("max_tokens", 0, _ANY),
    ("min_tokens", 0, _ANY),
    ("temperature", 0, _ANY),
    ("top_k", -1, _ANY),
    ("top_p", 0, 1),
    ("repetition_penalty", 0, _ANY),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("logprobs", 0, _MOST_LOGPROBS),
    ("prompt_logprobs", 0, _MOST_LOGPROBS),
)
