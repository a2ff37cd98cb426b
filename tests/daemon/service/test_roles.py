"""Roles of chats: what a template has is rendered, and nothing is dropped without a word."""

from __future__ import annotations

import jinja2
import pytest

from contract.faults import Fault, FaultKind
from contract.generation import Message
from daemon.service.roles import Roles

COMPARES = """
{% for m in messages %}
{% if m['role'] == 'system' and loop.first %}{{ m.content }}
{% elif m.role in ('bot', 'assistant') %}B{{ m.content }}
{% elif 'tool' == m['role'] %}T{{ m.content }}
{% endif %}
{% endfor %}
"""
WRITES = "{% for m in messages %}{{ 'User' if m.role == 'user' else m['role'] }}{{ m.content }}{% endfor %}"
ASSIGNS = "{% for m in messages %}{% set role = m.role %}{% if role == 'critic' %}C{% endif %}{% endfor %}"
LOOKS_UP = "{% set short = {'user': 'U', 'judge': 'J'} %}{{ short[messages[0].role] }}"
BLIND = "{% for m in messages %}{{ m.content }}{% endfor %}"


def settled(source: str, *roles: str) -> list[str]:
    messages = [Message(role=role, content="x", name="n") for role in roles]
    answer = Roles(jinja2.Environment(autoescape=True).parse(source)).settled(messages)
    assert all((message.content, message.name) == ("x", "n") for message in answer)
    return [message.role for message in answer]


@pytest.mark.parametrize(
    ("source", "roles"),
    [
        (COMPARES, ("system", "user", "assistant", "bot", "tool")),
        (WRITES, ("system", "user", "assistant", "tool", "function")),
        (ASSIGNS, ("system", "user", "assistant", "tool", "function", "critic")),
        (LOOKS_UP, ("system", "user", "assistant", "judge")),
        (BLIND, ("system", "user", "assistant")),
    ],
)
def test_roles_that_a_template_has(source: str, roles: tuple[str, ...]) -> None:
    assert settled(source, *roles) == list(roles)
    for unknown in ("User", "usr", "_bot", "role", ""):
        with pytest.raises(Fault) as caught:
            settled(source, "user", unknown)
        fault = caught.value
        assert fault.kind is FaultKind.INVALID_REQUEST
        assert fault.message.startswith("messages.1.role: ")
        assert repr(unknown) in fault.message
        assert fault.details == {"param": "messages.1.role"}
        assert fault.hint == f"its roles are: {', '.join(sorted({*roles, 'developer'}))}"


def test_what_is_never_written_is_refused() -> None:
    with pytest.raises(Fault, match="no role 'function'"):
        settled(COMPARES, "function")


def test_a_developer_is_the_system_where_the_template_does_not_know_one() -> None:
    assert settled(WRITES, "developer", "user") == ["system", "user"]
    assert settled(WRITES + "{{ messages[0].role == 'developer' }}", "developer") == ["developer"]
