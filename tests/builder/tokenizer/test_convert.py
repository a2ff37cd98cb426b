"""tokenizer.json gives the ids SentencePiece gives, on any text, for every kind of model."""

from __future__ import annotations

import functools
import io
import itertools
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from builder.tokenizer.convert import AddedTokens, convert, special_tokens
from builder.tokenizer.prove import SentencePieceOracle, is_tie, probe_texts, prove_equal
from builder.tokenizer.sentencepiece_model import SentencePieceModel, parse_sentencepiece
from contract.faults import Fault, FaultKind

CONTROLS = ["<_user>", "<_bot>"]
CORPUS = [
    "生抽与老抽的区别？老抽颜色深，生抽味道鲜。",
    "the quick brown fox jumps over the lazy dog, again and again and again",
    "aaaa abab ababab banana bananas aabbaabb abcabcabc",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "1+1=2 2+2=4 10-3=7 3.14159 2024-11-21",
    "def f(x): return x ** 2  # two  spaces",
    "今天天气很好，我们去公园玩。北京、上海、广州。",
] * 12


class Case:
    """A tokenizer trained with some options, and both of its readers."""

    def __init__(self, **options: Any) -> None:
        writer = io.BytesIO()
        defaults: dict[str, Any] = {
            "vocab_size": 400 if options.get("byte_fallback") else 220,
            "hard_vocab_limit": False,
            "character_coverage": 1.0,
            "control_symbols": CONTROLS,
            "user_defined_symbols": ["\n"],
            "minloglevel": 2,
            "num_threads": 1,
        }
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=writer, **{**defaults, **options}
        )
        data = writer.getvalue()
        self.model: SentencePieceModel = parse_sentencepiece(data)
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        added = AddedTokens({})
        self.specials = special_tokens(self.model, added)
        self.oracle = SentencePieceOracle(self.processor, self.specials)
        self.tokenizer: Tokenizer = convert(self.model, added)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


@functools.cache
def case(kind: str, byte_fallback: bool, dummy_prefix: bool, rule: str) -> Case:
    return Case(
        model_type=kind,
        byte_fallback=byte_fallback,
        add_dummy_prefix=dummy_prefix,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
    )


IDENTITY = list(itertools.product(("bpe", "unigram"), (True, False), (True, False), ("identity",)))
NORMALISED = list(itertools.product(("bpe", "unigram"), (True, False), (True, False), ("nmt_nfkc",)))

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
repetitive = st.text("ab n\n▁，抽", max_size=40)
words = st.lists(
    st.sampled_from([*CORPUS[:7], *CONTROLS, "<s>", "<unk>", " ", "\n", "<0x41>"]), max_size=6
).map("".join)
texts = st.one_of(
    any_text, repetitive, words, st.lists(st.one_of(any_text, st.sampled_from(CONTROLS))).map("".join)
)
common = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(("kind", "byte_fallback", "dummy_prefix", "rule"), IDENTITY)
def test_same_ids_on_any_text(kind: str, byte_fallback: bool, dummy_prefix: bool, rule: str) -> None:
    built = case(kind, byte_fallback, dummy_prefix, rule)

    @common
    @given(texts)
    @example("\n")
    @example("<_user>\n<_bot> a")
    @example("aaaaaaaaa ababababab abaaba")
    def same(text: str) -> None:
        ids, expected = built.ids(text), built.oracle.encode(text)
        assert ids == expected or is_tie(built.model, ids, expected)

    same()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_decodes_like_sentencepiece(kind: str, dummy_prefix: bool) -> None:
    """With bytes: without them, unknown characters are lost either way."""
    built = case(kind, True, dummy_prefix, "identity")

    @common
    @given(any_text)
    def same(text: str) -> None:
        ids = built.oracle.encode(text)
        assert built.tokenizer.decode(ids) == built.processor.decode(ids)

    same()


@pytest.mark.parametrize(("kind", "byte_fallback", "dummy_prefix", "rule"), NORMALISED)
def test_same_ids_after_normalisation(kind: str, byte_fallback: bool, dummy_prefix: bool, rule: str) -> None:
    built = case(kind, byte_fallback, dummy_prefix, rule)

    @common
    @given(texts)
    @example("ＡＢＣ　①②③ ﬁ ㍿")
    @example("  a  b  ")
    def same(text: str) -> None:
        ids, expected = built.ids(text), built.oracle.encode(text)
        assert ids == expected or is_tie(built.model, ids, expected)

    same()


@pytest.fixture(params=[*IDENTITY, *NORMALISED], ids=str)
def any_case(request: pytest.FixtureRequest) -> Case:
    return case(*request.param)


def test_the_probe_set_passes(any_case: Case) -> None:
    texts = probe_texts(any_case.model, any_case.specials)
    assert len(texts) > 50
    prove_equal(any_case.tokenizer, any_case.oracle, any_case.model, texts)


def test_user_symbols_of_several_characters() -> None:
    built = Case(
        model_type="bpe",
        user_defined_symbols=["\n", "<think>", "    "],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        vocab_size=400,
    )
    for text in ("a<think>b", "<think>", "x    y  z     w", "<thin<think>k>", "\n<0x41>\n"):
        assert built.ids(text) == built.oracle.encode(text), text


def test_renamed_and_further_tokens() -> None:
    built = case("bpe", True, True, "identity")
    size = len(built.model.pieces)
    renamed = built.specials["<_user>"]
    added = AddedTokens({renamed: "<tool_call>", size: "<extra>"})
    tokenizer = convert(built.model, added)
    specials = special_tokens(built.model, added)
    oracle = SentencePieceOracle(built.processor, specials)
    assert "<_user>" not in specials
    text = "<tool_call>a<_user>b<extra>\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == oracle.encode(text)
    assert ids[0] == renamed
    assert size in ids


def test_begin_token_in_front_when_asked() -> None:
    built = case("bpe", True, True, "identity")
    tokenizer = convert(built.model, AddedTokens({}, begin_ids=(1,)))
    assert tokenizer.encode("a").ids == [1, *built.oracle.encode("a")]
    assert tokenizer.encode("a", add_special_tokens=False).ids == built.oracle.encode("a")


def test_same_model_same_bytes() -> None:
    built = case("bpe", True, True, "identity")
    assert convert(built.model, AddedTokens({})).to_str() == convert(built.model, AddedTokens({})).to_str()


def test_control_strings_can_stay_text() -> None:
    """With ``encode_special_tokens`` the library reads control strings as their letters, as content needs."""
    for kind in ("bpe", "unigram"):
        built = case(kind, True, True, "identity")
        tokenizer = Tokenizer.from_str(built.tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        ids = tokenizer.encode("<_user> <_bot>", add_special_tokens=False).ids
        assert ids == built.processor.encode("<_user> <_bot>")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "char"}, "neither BPE nor UNIGRAM"),
        ({"treat_whitespace_as_suffix": True}, "spaces at the end"),
    ],
)
def test_refuses_what_it_cannot_express(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Fault) as caught:
        Case(**options)
    assert caught.value.kind is FaultKind.UNSUPPORTED
    assert reason in caught.value.message


def test_a_mismatch_names_the_text(sentencepiece_bytes: bytes) -> None:
    built = case("bpe", True, True, "identity")
    model = parse_sentencepiece(sentencepiece_bytes)
    other = convert(model, AddedTokens({}))
    with pytest.raises(Fault, match="生抽与老抽的区别") as caught:
        prove_equal(other, built.oracle, model, ["生抽与老抽的区别？"])
    assert caught.value.details["text"] == "生抽与老抽的区别？"
