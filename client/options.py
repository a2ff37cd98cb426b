"""What a caller may set for one request, and the ``contract`` request made of it. Knows no transport."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from client.errors import InvalidRequestError
from contract.faults import FaultKind
from contract.generation import GenerateRequest, Message, Sampling

MessageLike = Message | Mapping[str, Any]
"""A turn of a chat: ``{"role": "user", "content": "..."}`` or the contract's ``Message``."""


class Options(Sampling, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Everything that may be set for one request. ``None`` leaves the choice to the model."""

    model: str | None = None
    """``NAME`` or ``NAME@VERSION``; ``None``: the server's default model."""
    timeout_s: float | None = None
    """For the whole answer, instead of the client's own ``timeout_s``."""
    request_id: str | None = None
    """To find the request in the daemon's log; made up if not given."""
    skip_special_tokens: bool = True
    """Leave control tokens out of the answer."""
    priority: int = 0
    """Smaller is more urgent; 0 is normal."""


class OptionFields(TypedDict, total=False):
    """``Options`` as keyword arguments, for type checkers and editors."""

    model: str | None
    timeout_s: float | None
    request_id: str | None
    skip_special_tokens: bool
    priority: int
    max_tokens: int | None
    min_tokens: int
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    logprobs: int | None


def options_of(fields: OptionFields) -> Options:
    """Checked options. Raises ``InvalidRequestError`` naming the field that is wrong."""
    data: dict[str, Any] = dict(fields)
    if data.get("prompt_logprobs") is not None:
        raise invalid("the client does not report log-probabilities of the prompt")
    if isinstance(data.get("stop"), str):
        data["stop"] = (data["stop"],)
    try:
        return msgspec.convert(data, Options)
    except msgspec.ValidationError as error:
        reason = str(error).replace("Object contains unknown field", "there is no option")
        raise invalid(f"the options are wrong: {reason}") from None


def text_request(text: str, options: Options) -> GenerateRequest:
    """A raw prompt, to be continued."""
    _check_text(text, "the prompt")
    return _request(options, text=text)


def chat_request(messages: Iterable[MessageLike], options: Options) -> GenerateRequest:
    """A chat, to be answered. Raises ``InvalidRequestError`` for what is not a message."""
    turns: list[Message] = []
    for position, message in enumerate(messages):
        turns.append(_message(message, position))
    if not turns:
        raise invalid("there is no message", 'give at least one: [{"role": "user", "content": "..."}]')
    return _request(options, messages=turns)


def invalid(message: str, hint: str = "") -> InvalidRequestError:
    """A mistake that the client finds before it sends anything."""
    return InvalidRequestError(FaultKind.INVALID_REQUEST, message, hint)


def _request(
    options: Options, *, text: str | None = None, messages: list[Message] | None = None
) -> GenerateRequest:
    sampling = Sampling(**{name: getattr(options, name) for name in Sampling.__struct_fields__})
    return GenerateRequest(
        request_id=options.request_id or uuid.uuid4().hex,
        dialect="client",
        model=options.model,
        text=text,
        messages=messages,
        sampling=sampling,
        skip_special_tokens=options.skip_special_tokens,
        priority=options.priority,
        timeout_s=options.timeout_s,
    )


def _message(message: MessageLike, position: int) -> Message:
    if not isinstance(message, Message):
        try:
            message = msgspec.convert(dict(message), Message)
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            hint = 'a message is {"role": "user", "content": "..."}'
            raise invalid(f"message {position} is wrong: {error}", hint) from None
    _check_text(message.content, f"message {position}")
    return message


def _check_text(text: str, subject: str) -> None:
    if not isinstance(text, str):
        raise invalid(f"{subject} must be text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"{subject} is not valid Unicode at character {error.start}") from None
    if not text:
        raise invalid(f"{subject} is empty")
