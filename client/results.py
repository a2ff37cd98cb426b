"""What the client hands to its caller: typed, frozen, the same over every transport."""

from __future__ import annotations

from typing import Any

import msgspec

from contract.generation import Usage

UNAVAILABLE = "UNAVAILABLE"
"""State of a model that was not loaded, is no longer, or could not be."""


class TokenScore(msgspec.Struct, frozen=True):
    """A token of the answer with its log-probability and its likeliest rivals."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """(text, log-probability), likeliest first."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """More of an answer. The text may be empty, above all in the last chunk."""

    text: str = ""
    finish_reason: str | None = None
    """Set once, when the answer is complete: ``stop`` or ``length``."""
    usage: Usage | None = None
    """Set once, with or after the finish reason, if the server counts tokens."""
    model: str = ""
    logprobs: tuple[TokenScore, ...] = ()


class Timings(msgspec.Struct, frozen=True):
    """As seen from the client, in seconds from sending the request."""

    first_token_s: float
    total_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    text: str
    finish_reason: str
    """``stop``, ``length``, or ``cancelled`` after the caller cancelled."""
    usage: Usage | None
    """``None`` if the server did not count."""
    model: str
    timings: Timings
    request_id: str
    logprobs: tuple[TokenScore, ...] = ()

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first token; ``None`` for an answer too short to measure or not streamed."""
        elapsed = self.timings.total_s - self.timings.first_token_s
        if self.usage is None or self.usage.completion_tokens < 2 or elapsed <= 0:
            return None
        return (self.usage.completion_tokens - 1) / elapsed

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with stable keys."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        if not self.logprobs:
            del data["logprobs"]
        return data


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model of the server."""

    name: str
    version: str = ""
    state: str = "READY"
    """``READY``, ``LOADING``, ``UNLOADING`` or ``UNAVAILABLE``."""
    reason: str = ""
    """Why it is not ready, if the server says."""
    context_len: int | None = None
    """Prompt and answer together, in tokens, if the server says."""
    parent: str | None = None
    """Of an adapter: the model that it changes."""

    @property
    def ready(self) -> bool:
        return self.state == "READY"


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of itself, and of one model if one was asked for."""

    live: bool
    ready: bool
    model: str | None = None
    model_ready: bool | None = None
    server: str = ""
    """Name and version."""

    @property
    def ok(self) -> bool:
        """What was asked for can be used: the model if one was named, else the whole server."""
        return self.ready if self.model_ready is None else self.model_ready
