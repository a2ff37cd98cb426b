"""A chat as the model expects it: the model's own jinja2 template, rendered in a sandbox.

Control strings inside what the caller wrote are broken up by a sentinel character before rendering, so that
only the template's own remain recognisable; ``TextTokenizer.encode_protected`` removes the sentinels.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.sandbox
from jinja2.ext import Extension
from jinja2.parser import Parser

from contract.faults import Fault, FaultKind
from contract.generation import Message
from daemon.service.roles import Roles

_LONGEST_OUTPUT = 16 * 1024 * 1024
_LONGEST_S = 5.0
_LONG_INPUT = 65536
"""Characters from which rendering moves to a thread."""
_PRIVATE_USE = range(0xE000, 0xF900)


class _RefusalError(Exception):
    """The template called ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}`` marks training targets; rendering passes its body through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. Raises ``Fault`` INVALID_MODEL if it does not compile."""

    def __init__(self, source: str, variables: Mapping[str, Any], control_strings: Sequence[str]) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._roles = Roles(environment.parse(source))
        except jinja2.TemplateError as error:
            message = f"the chat template does not compile: {error}"
            raise Fault(FaultKind.INVALID_MODEL, message, "package the model again") from None
        self._source = source
        self._variables = dict(variables)
        alternatives = "|".join(map(re.escape, control_strings)) or r"(?!)"
        self._occurrence = re.compile(f"(?=(?:{alternatives}))")
        self._prefixes = frozenset(text[:end] for text in control_strings for end in range(1, len(text)))
        self._longest = max(map(len, control_strings), default=0)

    async def render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[str, str]:
        """The prompt, and the sentinel to remove from it ("" if none was needed).

        Raises ``Fault`` INVALID_REQUEST when the template lacks a role or refuses these messages.
        """
        try:
            context, sentinel = self._prepared(_context(self._roles.settled(messages), options))
        except RecursionError:
            message = "the messages or template options are nested too deeply"
            raise Fault(FaultKind.INVALID_REQUEST, message, "send flatter JSON") from None
        if _size(context) < _LONG_INPUT:
            return self._render(context), sentinel
        return await asyncio.to_thread(self._render, context), sentinel

    def _prepared(self, context: dict[str, Any]) -> tuple[dict[str, Any], str]:
        if not self._needs_protection(context):
            return context, ""
        sentinel = _absent_character(self._source + json.dumps(context, ensure_ascii=False, default=str))
        return self._protect_context(context, sentinel), sentinel

    def _render(self, context: dict[str, Any]) -> str:
        parts: list[str] = []
        size, deadline = 0, time.monotonic() + _LONGEST_S
        try:
            for part in self._template.generate({**self._variables, **context}):
                parts.append(part)
                size += len(part)
                if size > _LONGEST_OUTPUT or time.monotonic() > deadline:
                    message = "the chat template's output is too large or takes too long"
                    raise Fault(FaultKind.INVALID_REQUEST, message, "send fewer or shorter messages")
        except _RefusalError as refusal:
            message = f"the model's chat template refuses these messages: {refusal}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "change roles or order as it says") from None
        except Fault:
            raise
        except Exception as error:  # a template can raise anything, TypeError for a missing field included
            message = f"the model's chat template fails on these messages: {error}"
            hint = "check roles and fields; or send a raw prompt"
            raise Fault(FaultKind.INVALID_REQUEST, message, hint) from None
        return "".join(parts)

    def _needs_protection(self, context: dict[str, Any]) -> bool:
        openings = any(self._opening_length(turn["content"]) for turn in context["messages"])
        return openings or self._occurs_in(context)

    def _occurs_in(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._occurrence.search(value) is not None
        if isinstance(value, dict):
            return any(self._occurs_in(part) for pair in value.items() for part in pair)
        if isinstance(value, list):
            return any(self._occurs_in(part) for part in value)
        return False

    def _protect_context(self, context: dict[str, Any], sentinel: str) -> dict[str, Any]:
        protected: dict[str, Any] = self._protected(context, sentinel)
        for turn, original in zip(protected["messages"], context["messages"], strict=True):
            turn["content"] = self._closed_off(turn["content"], original["content"], sentinel)
        return protected

    def _protected(self, value: Any, sentinel: str) -> Any:
        if isinstance(value, str):
            return self._broken_up(value, sentinel)
        if isinstance(value, dict):
            return {self._protected(k, sentinel): self._protected(v, sentinel) for k, v in value.items()}
        if isinstance(value, list):
            return [self._protected(part, sentinel) for part in value]
        return value

    def _broken_up(self, text: str, sentinel: str) -> str:
        """A sentinel after the first character of every control string, overlapping ones included."""
        parts, start = [], 0
        for match in self._occurrence.finditer(text):
            parts.append(text[start : match.start() + 1])
            start = match.start() + 1
        return sentinel.join([*parts, text[start:]])

    def _closed_off(self, text: str, original: str, sentinel: str) -> str:
        """A sentinel in a control string begun at the content's end, which what follows might complete."""
        opening = self._opening_length(original)
        return (
            f"{text[: len(text) - opening + 1]}{sentinel}{text[len(text) - opening + 1 :]}"
            if opening
            else text
        )

    def _opening_length(self, text: str) -> int:
        """How much of the text's end is the beginning of a control string."""
        longest = min(len(text), self._longest - 1)
        return next((size for size in range(longest, 0, -1) if text[-size:] in self._prefixes), 0)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """As transformers sets it up, which is what templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _context(messages: Sequence[Message], options: Mapping[str, Any]) -> dict[str, Any]:
    turns = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        for field in ("name", "tool_calls", "tool_call_id"):
            value = getattr(message, field)
            if value is not None:
                turn[field] = value
        turns.append(turn)
    return {"add_generation_prompt": True, **options, "messages": turns}


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(key) + _size(part) for key, part in value.items())
    if isinstance(value, list):
        return sum(_size(part) for part in value)
    return 1


def _absent_character(text: str) -> str:
    present = set(text)
    for code in _PRIVATE_USE:
        if chr(code) not in present:
            return chr(code)
    message = "the messages use every private-use character and a control string of the model"
    raise Fault(FaultKind.INVALID_REQUEST, message, "remove the control strings from the messages")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise _RefusalError(message)


def _now(pattern: str) -> str:
    return dt.datetime.now().astimezone().strftime(pattern)
