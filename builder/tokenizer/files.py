"""The tokenizer part of a model directory: tokenizer.json, its config and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.tokenizer.convert import AddedTokens, convert, special_tokens
from builder.tokenizer.prove import SentencePieceOracle, probe_texts, prove_equal
from builder.tokenizer.sentencepiece_model import SentencePieceModel, read_sentencepiece
from contract.faults import Fault, FaultKind, Problem
from contract.manifest import canonical_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_JSON = "tokenizer.json"
SENTENCEPIECE_MODEL = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
_ROLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True)
class TokenizerInputs:
    """What is known about the tokenizer before its file is read."""

    path: Path
    config: Mapping[str, Any]
    """The publisher's tokenizer_config.json; empty when there is none."""
    template: tuple[str, str] | None
    """Chat template from elsewhere: (where it is from, its text)."""
    vocab_size: int
    token_ids: Mapping[str, int]
    """``bos``, ``eos``, ``pad``, ``unk`` -> id, as the model's config has them; of several the first."""
    end_ids: tuple[int, ...] = ()
    """All ends that the model's config has."""
    control_tokens: Mapping[int, str] = field(default_factory=dict)
    """Id -> control string, for ids that the tokenizer's config does not name."""
    prefix: tuple[str, ...] = ()
    """Control strings that begin every text."""
    adds_bos: bool = False
    """What a SentencePiece tokenizer does when its config does not say."""
    names_the_end: bool = False
    """The tokenizer's end token is one more end, not a contradiction."""


@dataclass(frozen=True)
class TokenizerFiles:
    files: dict[str, bytes]
    pieces: int = 0
    add_bos: bool = False
    prefix_ids: tuple[int, ...] = ()
    """What begins every text, where that is more than the beginning token."""
    has_template: bool = False
    vocab_file: str | None = None
    """The SentencePiece file, if there is one."""
    eos_id: int | None = None
    """The end token that the tokenizer's own config names."""
    probes: int = 0
    """Texts on which tokenizer.json was proved equal to SentencePiece."""
    problems: tuple[Problem, ...] = field(default=())


def build_tokenizer(inputs: TokenizerInputs) -> TokenizerFiles:
    """Everything about the tokenizer that goes into the directory. Raises ``Fault`` if it cannot be read."""
    template = _chat_template(inputs)
    problems = _template_problems(template)
    read = _from_sentencepiece if inputs.path.suffix == ".model" else _from_json
    tokenizer, found = read(inputs)
    files = dict(found.files)
    pieces = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if pieces > inputs.vocab_size:
        message = f"has ids up to {pieces - 1}, the model's vocab_size is {inputs.vocab_size}"
        problems.append(
            Problem(str(inputs.path), message, "take the tokenizer that the model was trained with")
        )
    problems.extend(_id_problems(inputs, tokenizer))
    prefix = [tokenizer.token_to_id(text) for text in inputs.prefix]
    if None in prefix:
        message = f"lacks {' or '.join(inputs.prefix)}, with which the model's texts begin"
        problems.append(Problem(str(inputs.path), message, "take the tokenizer of this model"))
    files[TOKENIZER_CONFIG] = canonical_json(_config(inputs, tokenizer, template))
    if template is not None:
        files[CHAT_TEMPLATE] = template[1].encode()
    end = _token_text(inputs.config.get("eos_token"))
    return replace(
        found,
        files=files,
        pieces=pieces,
        prefix_ids=tuple(index for index in prefix if index is not None),
        has_template=template is not None,
        eos_id=tokenizer.token_to_id(end) if end else None,
        problems=tuple(problems),
    )


def _from_sentencepiece(inputs: TokenizerInputs) -> tuple[Tokenizer, TokenizerFiles]:
    add_bos = bool(inputs.config.get("add_bos_token", inputs.adds_bos))
    data = inputs.path.read_bytes()
    model = read_sentencepiece(inputs.path)
    added = _added_tokens(inputs, len(model.pieces), add_bos)
    tokenizer = convert(model, added)
    probes = _prove(tokenizer, model, added, data)
    files = {SENTENCEPIECE_MODEL: data, TOKENIZER_JSON: tokenizer.to_str().encode()}
    found = TokenizerFiles(files, add_bos=add_bos, vocab_file=SENTENCEPIECE_MODEL, probes=probes)
    return tokenizer, found


def _from_json(inputs: TokenizerInputs) -> tuple[Tokenizer, TokenizerFiles]:
    tokenizer = _read_tokenizer_json(inputs.path)
    own = _puts_first(tokenizer, inputs.token_ids.get("bos"))
    add_bos = bool(inputs.config.get("add_bos_token", own))
    return tokenizer, TokenizerFiles({TOKENIZER_JSON: inputs.path.read_bytes()}, add_bos=add_bos)


def _puts_first(tokenizer: Tokenizer, begin: int | None) -> bool:
    """Whether the tokenizer itself begins every text with this token."""
    return begin is not None and tokenizer.encode("a", add_special_tokens=True).ids[:1] == [begin]


def _prove(tokenizer: Tokenizer, model: SentencePieceModel, added: AddedTokens, data: bytes) -> int:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    specials = special_tokens(model, added)
    texts = probe_texts(model, specials)
    prove_equal(tokenizer, SentencePieceOracle(processor, specials), model, texts)
    return len(texts)


def _read_tokenizer_json(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        message = f"{path} is not a tokenizer.json: {error}"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch the file again") from None


def _added_tokens(inputs: TokenizerInputs, pieces: int, add_bos: bool) -> AddedTokens:
    """Tokens that tokenizer_config.json names: other names of pieces, and tokens behind the last piece."""
    names = dict(inputs.control_tokens)
    table = inputs.config.get("added_tokens_decoder")
    for key, entry in (table if isinstance(table, dict) else {}).items():
        text = entry.get("content") if isinstance(entry, dict) else entry
        if str(key).isdigit() and isinstance(text, str) and text:
            names[int(key)] = text
    gaps = [index for index in sorted(names) if index >= pieces]
    if gaps and gaps != list(range(pieces, pieces + len(gaps))):
        message = f"tokenizer.model has {pieces} pieces, and the tokens behind them have the ids {gaps[:8]}"
        hint = "ids must follow without a gap: take this model's tokenizer.model and tokenizer_config.json"
        raise Fault(FaultKind.INVALID_MODEL, message, hint)
    begin = inputs.token_ids.get("bos") if add_bos else None
    ids = {text: index for index, text in names.items()}
    prefix = [ids[text] for text in inputs.prefix if text in ids] or ([] if begin is None else [begin])
    return AddedTokens(dict(sorted(names.items())), tuple(prefix))


def _chat_template(inputs: TokenizerInputs) -> tuple[str, str] | None:
    """(where it is from, its text). A file of its own wins over tokenizer_config.json, as in transformers."""
    if inputs.template is not None and inputs.template[0] == CHAT_TEMPLATE:
        return inputs.template
    own = inputs.config.get("chat_template")
    if isinstance(own, list):
        named = {entry.get("name"): entry.get("template") for entry in own if isinstance(entry, dict)}
        own = named.get("default")
    if isinstance(own, str) and own:
        return f"{TOKENIZER_CONFIG}  chat_template", own
    return inputs.template


def _template_problems(template: tuple[str, str] | None) -> list[Problem]:
    if template is None:
        return []
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        environment.parse(template[1])
    except TemplateSyntaxError as error:
        where = f"{template[0]}:{error.lineno}"
        return [Problem(where, f"is not a jinja2 template: {error.message}", "correct the chat template")]
    return []


def _id_problems(inputs: TokenizerInputs, tokenizer: Tokenizer) -> list[Problem]:
    """Where tokenizer_config.json names a token whose id the model's config gives to another."""
    problems = []
    for role in ("bos", "eos"):
        text = _token_text(inputs.config.get(f"{role}_token"))
        wanted = inputs.token_ids.get(role)
        found = tokenizer.token_to_id(text) if text else None
        if role == "eos" and found is not None and (inputs.names_the_end or found in inputs.end_ids):
            continue
        if text and found is None:
            message = f"{text!r} is not in the vocabulary"
            problems.append(Problem(f"{TOKENIZER_CONFIG}  {role}_token", message, "correct the token"))
        elif wanted is not None and found is not None and found != wanted:
            message = f"{text!r} is id {found}, the model's {role}_token_id is {wanted}"
            remedy = f"correct {role}_token_id in the yaml or config.json, or the token"
            problems.append(Problem(f"{TOKENIZER_CONFIG}  {role}_token", message, remedy))
    return problems


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _config(
    inputs: TokenizerInputs, tokenizer: Tokenizer, template: tuple[str, str] | None
) -> dict[str, Any]:
    """tokenizer_config.json without the publisher's remote code: tokenizer.json says it all."""
    config = {key: value for key, value in inputs.config.items() if key not in ("auto_map", "use_fast")}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.setdefault("clean_up_tokenization_spaces", False)
    for role in _ROLES:
        text = tokenizer.id_to_token(inputs.token_ids[role]) if role in inputs.token_ids else None
        if text is not None:
            config.setdefault(f"{role}_token", text)
    if template is not None:
        config["chat_template"] = template[1]
    return config


def read_json_object(path: Path) -> dict[str, Any] | Problem:
    """The object a JSON file holds, or what is wrong with the file."""
    try:
        value = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        return Problem(f"{path}:{error.lineno}", f"is not valid JSON: {error.msg}", "correct the line")
    except (UnicodeDecodeError, RecursionError) as error:
        return Problem(str(path), f"is not valid JSON: {error}", "fetch the file again")
    except OSError as error:
        return Problem(str(path), f"cannot be read: {error.strerror}", "check its permissions")
    if not isinstance(value, dict):
        return Problem(str(path), "must hold a JSON object", "fetch the file again")
    return value
