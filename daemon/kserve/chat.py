"""Chat messages in OpenAI's JSON form, as every dialect that takes a chat reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from contract.faults import Fault, FaultKind
from contract.generation import Message
from daemon.kserve import fields
from daemon.kserve.fields import Fields

MOST_MESSAGES = 8192


class MessageFields(Fields):
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "reasoning": ("",),
        "reasoning_content": ("",),
        "refusal": ("",),
    }

    role: str
    content: Any = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


def parse_messages(data: Any, where: str = "messages") -> list[Message]:
    """Messages of a request. Raises ``Fault`` naming the first that is wrong."""
    if not isinstance(data, list) or not data:
        raise _invalid(where, "must be a list with at least one message")
    if len(data) > MOST_MESSAGES:
        raise _invalid(where, f"may hold {MOST_MESSAGES} messages; got {len(data)}")
    return [_message(entry, f"{where}.{index}") for index, entry in enumerate(data)]


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, Mapping):
        raise _invalid(where, "must be an object with 'role' and 'content'")
    message = fields.parse(MessageFields, entry, f"{where}.")
    if not message.role:
        raise _invalid(f"{where}.role", "must not be empty")
    if message.content is None and not message.tool_calls:
        raise _invalid(f"{where}.content", "this field is required")
    return Message(
        role=message.role,
        content=_text(message.content, f"{where}.content"),
        name=message.name,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
    )


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise _invalid(where, "must be a string or a list of text parts")
    return "".join(_part(part, f"{where}.{index}") for index, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(kind, str) and kind != "text":
        message = (
            f"{where}: content of type '{kind}' is not supported: the models of this server read text only"
        )
        raise Fault(FaultKind.UNSUPPORTED, message, "send parts of type 'text'", {"param": where})
    raise _invalid(where, 'must be {"type": "text", "text": "..."}')


def _invalid(where: str, reason: str) -> Fault:
    return Fault(FaultKind.INVALID_REQUEST, f"{where}: {reason}", "", {"param": where})
