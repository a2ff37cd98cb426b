"""Chats are rendered as templates expect, and what callers write never becomes a control token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.faults import Fault, FaultKind
from contract.generation import Message
from daemon.service.chat import ChatTemplate
from daemon.service.tokenizer import TextTokenizer
from tests.fakes import (
    CHAT_TEMPLATE,
    CONTROL_TOKENS,
    byte_level_tokenizer,
    sentencepiece_tokenizer,
    user,
)

BYTE_LEVEL = TextTokenizer(byte_level_tokenizer())
SENTENCEPIECE = TextTokenizer(sentencepiece_tokenizer())
CONTENT = st.lists(
    st.one_of(
        st.sampled_from([*CONTROL_TOKENS, "<", "<_", "user>", ">", "\ue000", " "]), st.text(max_size=5)
    ),
    max_size=8,
).map("".join)


def template(source: str = CHAT_TEMPLATE, **variables: Any) -> ChatTemplate:
    return ChatTemplate(source, variables, BYTE_LEVEL.control_strings)


async def encoded(tokenizer: TextTokenizer, messages: list[Message]) -> tuple[list[int], str]:
    text, sentinel = await template().render(messages, {})
    if sentinel:
        return await tokenizer.encode_protected(text, sentinel), text.replace(sentinel, "")
    return await tokenizer.encode(text), text


@given(st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]), st.lists(CONTENT, min_size=1, max_size=3))
def test_contents_never_make_control_ids(tokenizer: TextTokenizer, contents: list[str]) -> None:
    messages = [Message(role="user", content=content) for content in contents]
    ids, text = asyncio.run(encoded(tokenizer, messages))
    controls = [one for one in ids if one in tokenizer.special_ids and one != CONTROL_TOKENS.index("<_unk>")]
    expected = [CONTROL_TOKENS.index("<_user>")] * len(contents) + [CONTROL_TOKENS.index("<_bot>")]
    assert controls == expected
    assert text == "".join(f"<_user>{content}" for content in contents) + "<_bot>"


@given(st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]), st.text(max_size=40))
def test_protected_encoding_equals_the_normal_one(tokenizer: TextTokenizer, content: str) -> None:
    text = f"<_user>{content}<_bot>".replace("\ue000", "")
    assert asyncio.run(tokenizer.encode_protected(text, "\ue000")) == tokenizer.encode_now(text)


def test_a_unigram_model_cannot_be_tricked() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    pieces = [("<unk>", 0.0), ("<_user>", 0.0), *((chr(code), -3.0) for code in range(33, 127))]
    source = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    source.decoder = decoders.Metaspace()
    source.add_special_tokens([AddedToken("<_user>", normalized=False)])
    tokenizer = TextTokenizer(source.to_str())
    assert tokenizer.encode_now("a<_user>") == [66, 1]
    assert 1 not in asyncio.run(tokenizer.encode_protected("a<\ue000_user>", "\ue000"))


async def test_tools_and_roles_are_protected_too() -> None:
    source = "{{ tools | tojson }}<_user>{{ messages[0].content }}"
    options = {"tools": [{"name": "<_end>", "<_bot>": 1}]}
    text, sentinel = await template(source).render(user("hi"), options)
    assert sentinel
    ids = await BYTE_LEVEL.encode_protected(text, sentinel)
    assert [one for one in ids if one in BYTE_LEVEL.special_ids] == [CONTROL_TOKENS.index("<_user>")]


async def test_no_sentinel_where_none_is_needed() -> None:
    assert await template().render(user("a < b"), {}) == ("<_user>a < b<_bot>", "")


async def test_without_generation_prompt() -> None:
    text, _ = await template().render(user("hi"), {"add_generation_prompt": False})
    assert text == "<_user>hi"


async def test_variables_and_json() -> None:
    source = "{{ bos_token }}{{ messages[0].tool_calls | tojson }}{% generation %}!{% endgeneration %}"
    message = Message(role="assistant", content="", tool_calls=[{"名": "<b>"}])
    text, _ = await template(source, bos_token="<s>").render([message], {})
    assert text == '<s>[{"名": "<b>"}]!'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "fails on these messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(90000000) %}x{% endfor %}", "Range too big"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
            "too large",
        ),
    ],
)
async def test_refusals_name_the_reason(source: str, reason: str) -> None:
    with pytest.raises(Fault, match=reason) as caught:
        await template(source).render(user("hi"), {})
    assert caught.value.kind is FaultKind.INVALID_REQUEST


async def test_a_role_that_the_template_lacks() -> None:
    known = "{{ messages[0].content if messages[0].role == 'user' }}"
    assert await template(known).render(user("hi"), {}) == ("hi", "")
    with pytest.raises(Fault, match=r"messages\.0\.role: .* no role 'usr'"):
        await template(known).render([Message(role="usr", content="hi")], {})


async def test_deeply_nested_options() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(Fault, match="nested too deeply"):
        await template().render(user("hi"), {"tools": nested})


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(Fault, match="does not compile") as caught:
        template("{% if %}")
    assert caught.value.kind is FaultKind.INVALID_MODEL
