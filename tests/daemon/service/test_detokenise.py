"""Deltas add up to what ``tokenizers`` decodes, and never end within a character."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from contract.faults import Fault
from daemon.service.detokenise import detokeniser
from daemon.service.tokenizer import TextTokenizer
from tests.fakes import CONTROL_TOKENS, byte_level_tokenizer, sentencepiece_tokenizer


def metaspace_tokenizer() -> str:
    tokenizer = Tokenizer.from_str(sentencepiece_tokenizer())
    tokenizer.decoder = decoders.Metaspace()
    return str(tokenizer.to_str())


BYTE_LEVEL = TextTokenizer(byte_level_tokenizer())
SENTENCEPIECE = TextTokenizer(sentencepiece_tokenizer())
METASPACE = TextTokenizer(metaspace_tokenizer())
TOKENIZERS = st.sampled_from([BYTE_LEVEL, SENTENCEPIECE, METASPACE])


def pushed(tokenizer: TextTokenizer, ids: list[int], step: int, skip: bool) -> list[str]:
    text = detokeniser(tokenizer, skip_special_tokens=skip)
    return [*(text.push(ids[at : at + step]) for at in range(0, len(ids), step)), text.flush()]


@given(
    TOKENIZERS,
    st.lists(st.integers(0, 320), max_size=40),
    st.integers(1, 5),
    st.booleans(),
)
def test_random_ids(tokenizer: TextTokenizer, ids: list[int], step: int, skip: bool) -> None:
    expected = tokenizer.decode_now(ids, skip_special_tokens=skip)
    assert "".join(pushed(tokenizer, ids, step, skip)) == expected


@given(TOKENIZERS, st.text(max_size=60), st.integers(1, 5))
def test_encoded_text(tokenizer: TextTokenizer, text: str, step: int) -> None:
    ids = tokenizer.encode_now(text)
    expected = tokenizer.decode_now(ids, skip_special_tokens=False)
    deltas = pushed(tokenizer, ids, step, skip=False)
    assert "".join(deltas) == expected
    if "\N{REPLACEMENT CHARACTER}" not in expected:
        assert all("\N{REPLACEMENT CHARACTER}" not in delta for delta in deltas)


def test_half_a_character_waits() -> None:
    ids = BYTE_LEVEL.encode_now("😀")
    assert len(ids) == 4
    text = detokeniser(BYTE_LEVEL, skip_special_tokens=True)
    assert [text.push([one]) for one in ids] == ["", "", "", "😀"]


def test_half_a_character_at_the_end_is_replaced() -> None:
    text = detokeniser(BYTE_LEVEL, skip_special_tokens=True)
    assert text.push(BYTE_LEVEL.encode_now("😀")[:3]) == ""
    assert text.flush() == "\N{REPLACEMENT CHARACTER}"


def test_the_dummy_prefix_is_stripped_once() -> None:
    ids = SENTENCEPIECE.encode_now("Hello world")
    assert SENTENCEPIECE.bytes_of(ids[0]).startswith(b" ")
    assert "".join(pushed(SENTENCEPIECE, ids, 1, skip=True)) == "Hello world"


def test_bytes_of() -> None:
    newline = SENTENCEPIECE.id_of("<0x0A>")
    assert newline is not None
    assert SENTENCEPIECE.bytes_of(newline) == b"\n"
    assert BYTE_LEVEL.bytes_of(CONTROL_TOKENS.index("<_bot>")) == b"<_bot>"
    assert BYTE_LEVEL.bytes_of(10**6) == b""


def test_an_unknown_decoder_is_refused() -> None:
    data = json.loads(byte_level_tokenizer())
    data["decoder"] = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    with pytest.raises(Fault, match="unsupported kind CTC"):
        TextTokenizer(json.dumps(data))
