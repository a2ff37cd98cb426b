"""Fields that chat completions and completions share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from contract.generation import FinishReason, GenerateRequest, Sampling, Usage
from daemon.http_api.options import HttpOptions
from daemon.kserve.fields import Fields
from daemon.kserve.sampling import SamplingFields

SYSTEM_FINGERPRINT = "mindport"
_TGI_PLACEHOLDERS = ("dummy", "tgi")


class StreamOptions(Fields):
    include_usage: bool | None = None
    continuous_usage_stats: Literal[False] | None = None
    include_obfuscation: Literal[False] | None = None


class OpenAIFields(SamplingFields):
    """``metadata``, ``user`` and their like mean nothing to a local server and are accepted as they are."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **SamplingFields.unsupported,
        "add_special_tokens": (True,),
        "response_format": ({"type": "text"},),
        "store": (False,),
    }

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


def model_name(body: OpenAIFields, options: HttpOptions) -> str | None:
    """The model asked for; clients of TGI, which serves one, send a word in its place."""
    is_placeholder = options.generate_flavour == "tgi" and body.model in _TGI_PLACEHOLDERS
    return None if is_placeholder else body.model or None


def generate_request(body: OpenAIFields, request_id: str, sampling: Sampling) -> GenerateRequest:
    """A request with everything but its prompt and its length default."""
    return GenerateRequest(
        request_id=request_id,
        dialect="openai",
        sampling=sampling,
        n=body.n or 1,
        skip_special_tokens=not body.keeps_special_tokens,
        truncate_prompt=body.truncate_prompt_tokens,
        priority=body.priority or 0,
    )


def finish_word(reason: FinishReason | None) -> str | None:
    """OpenAI knows no difference between an end token and a stop string."""
    return "stop" if reason == "stop_string" else reason


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class Frame(msgspec.Struct):
    """What is the same in every object of one answer."""

    id: str
    object: str
    created: int
    model: str

    def wrap(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": choices,
            **more,
        }
