"""A chat as data: its turns and settings, and what may be done to them. Knows no terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from client.options import OptionFields, Options, invalid, options_of

_NOT_SETTABLE = frozenset(("request_id", "prompt_logprobs", "logprobs"))
SETTABLE = tuple(name for name in Options.__struct_fields__ if name not in _NOT_SETTABLE)
"""What ``set`` takes."""


class Conversation:
    """Whole turns only: a question enters the history together with its answer."""

    def __init__(self, options: OptionFields, system: str | None = None) -> None:
        self.options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        self.system = system
        self._turns: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._turns)

    def messages(self, question: str | None = None) -> list[dict[str, Any]]:
        """The chat so far, with a new question at its end."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self._turns:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def add(self, question: str, answer: str) -> None:
        self._turns.append((question, answer))

    def undo(self) -> tuple[str, str] | None:
        """Forget the last turn and return it, question and answer; ``None`` if there is none."""
        return self._turns.pop() if self._turns else None

    def clear(self) -> None:
        self._turns.clear()

    def set(self, name: str, text: str) -> None:
        """Set an option from its text; ``default`` unsets it. Raises ``InvalidRequestError``."""
        if name not in SETTABLE:
            raise invalid(f"there is no option {name!r}", f"one of: {', '.join(SETTABLE)}")
        options = {key: value for key, value in self.options.items() if key != name}
        if text != "default":
            options[name] = text if name in {"stop", "model"} else _value(name, text)
        options_of(options)  # type: ignore[arg-type]
        self.options = options

    def save(self, path: Path) -> None:
        """Write the chat as JSON that ``/v1/chat/completions`` takes. Raises ``OSError``."""
        data = {**self.options, "messages": self.messages()}
        path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise invalid(f"{name} cannot be {text!r}", "write a number, true, false or default") from None
