"""A generate request and the events that answer it, the same for every dialect and transport."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "stop_string", "length"]
"""``stop``: an end token; ``stop_string``: a stop string of the request; ``length``: the token limit."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How tokens are chosen and when to stop. ``None`` means: the model's default, then the dialect's."""

    max_tokens: int | None = None
    """New tokens at most; ``None`` after resolution means the rest of the context."""
    min_tokens: int = 0
    """End tokens and stop ids are not chosen before this many tokens."""
    do_sample: bool | None = None
    """``False`` takes the likeliest token whatever the temperature says."""
    temperature: float | None = None
    """0 is greedy."""
    top_k: int | None = None
    """0 or -1 is off."""
    top_p: float | None = None
    """1.0 is off."""
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    """Keep the stop string in the answer."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """Report the chosen token's log-probability and this many alternatives."""
    prompt_logprobs: int | None = None
    """The same for each prompt token after the first."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a chat."""

    role: str
    content: str
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class GenerateRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What every dialect parses its body into. Exactly one of text, token_ids and messages is given."""

    request_id: str
    dialect: str
    """Which API asked, for metrics, logs and defaults: ``mindie``, ``openai``, ``triton`` ..."""
    model: str | None = None
    """``NAME``, ``NAME@VERSION`` or ``None`` for the default model."""
    text: str | None = None
    """Raw prompt: no template, control strings become their ids."""
    token_ids: list[int] | None = None
    messages: list[Message] | None = None
    """Rendered by the model's chat template; control strings in content stay plain text."""
    template_options: dict[str, Any] = {}
    """Further variables of the chat template (``tools``, ``add_generation_prompt``...)."""
    sampling: Sampling = Sampling()
    default_max_tokens: int | None = None
    """The dialect's length default; ``None`` is the rest of the context."""
    n: int = 1
    """Answers to one prompt."""
    skip_special_tokens: bool = True
    truncate_prompt: int | None = None
    """Keep only this many last prompt tokens."""
    priority: int = 0
    """Smaller is more urgent; 0 is normal. The more urgent goes first and displaces the less urgent."""
    caller: str = ""
    """On whose behalf, as far as the daemon can tell; callers share a model's places evenly."""
    timeout_s: float | None = None


class TokenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token with its log-probability (natural logarithm) and its likeliest rivals."""

    token_id: int
    token: str
    """The token's own text; half characters appear as U+FFFD."""
    logprob: float | None
    """``None`` for the first prompt token."""
    top: tuple[tuple[int, str, float], ...] = ()
    """(id, text, log-probability), likeliest first."""
    raw: bytes = b""
    """The token's bytes."""


class Started(msgspec.Struct, frozen=True, tag="started", omit_defaults=True):
    """The prompt is accepted. Always the first event."""

    model: str
    version: str
    prompt_token_ids: list[int]
    prompt_text: str
    """The prompt as rendered."""
    prompt_logprobs: list[TokenLogprob] | None = None


class Delta(msgspec.Struct, frozen=True, tag="delta", omit_defaults=True):
    """More of one answer. Text never ends within a character; it may be empty while tokens are not."""

    text: str
    token_ids: list[int]
    index: int = 0
    """Which of the ``n`` answers."""
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    """Set in the last delta of this answer."""
    stop_match: str | int | None = None
    """The stop string or stop id that ended it."""


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """All answers are complete. Terminal."""

    usage: Usage
    queue_s: float = 0.0
    first_token_s: float = 0.0
    """From acceptance to the first token."""
    total_s: float = 0.0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request ended with a fault after it had started. Terminal."""

    fault: dict[str, Any]
    """``Fault.to_dict()``."""


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled"):
    """The caller went away or asked to stop. Terminal."""

    usage: Usage


Event = Started | Delta | Finished | Failed | Cancelled
