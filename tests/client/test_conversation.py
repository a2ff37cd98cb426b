"""The chat as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.cli.conversation import Conversation
from client.errors import InvalidRequestError


def test_turns() -> None:
    chat = Conversation({}, "brief")
    chat.add("a", "b")
    assert [message["role"] for message in chat.messages("c")] == ["system", "user", "assistant", "user"]
    assert chat.undo() == ("a", "b")
    assert chat.undo() is None
    chat.add("a", "b")
    chat.clear()
    assert len(chat) == 0


def test_options() -> None:
    chat = Conversation({"temperature": 0.5, "model": None})
    chat.set("max_tokens", "7")
    chat.set("stop", "end")
    chat.set("temperature", "default")
    assert chat.options == {"max_tokens": 7, "stop": "end"}


@pytest.mark.parametrize(("name", "value"), [("nonsense", "1"), ("max_tokens", "many"), ("seed", "1.5")])
def test_wrong_option_changes_nothing(name: str, value: str) -> None:
    chat = Conversation({})
    with pytest.raises(InvalidRequestError, match=name):
        chat.set(name, value)
    assert chat.options == {}


def test_saved_chat_is_a_request(tmp_path: Path) -> None:
    chat = Conversation({"model": "m"})
    chat.add("你", "好")
    chat.save(tmp_path / "chat.json")
    data = json.loads((tmp_path / "chat.json").read_text("utf-8"))
    assert data == {"model": "m", "messages": chat.messages()}
