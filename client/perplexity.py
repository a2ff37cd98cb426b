"""How well a model foresees a text: its tokens in passages, and what their log-probabilities come to."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from contract.faults import Fault, FaultKind


class Tokens(msgspec.Struct, frozen=True):
    """A text as a model reads it."""

    ids: tuple[int, ...]
    context_len: int | None = None
    """The longest sequence of the model, if the server says."""


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text; with a prompt, what the model is to say after it."""

    completion: str
    prompt: str = ""


class Passage(msgspec.Struct, frozen=True):
    """A sequence to score."""

    ids: tuple[int, ...]
    first: int
    """Tokens before it are context only."""


class Perplexity(msgspec.Struct, frozen=True):
    """The exponential of the mean negative log-probability of a token."""

    model: str
    perplexity: float
    tokens: int
    """So many were foreseen."""


def read_pieces(path: Path) -> list[Piece]:
    """A text file is one piece; a line of a ``.jsonl`` file is one each. Raises ``Fault``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "name a text file") from None
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8: byte {error.start} cannot be decoded"
        raise Fault(FaultKind.INVALID_REQUEST, message, "convert it first: iconv -t UTF-8") from None
    if path.suffix != ".jsonl":
        return [Piece(text)]
    return [
        _piece(line, f"{path}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()
    ]


def _piece(line: str, where: str) -> Piece:
    try:
        return msgspec.json.decode(line, type=Piece)
    except msgspec.DecodeError as error:
        example = json.dumps({"prompt": "2 + 2 = ", "completion": "4"})
        message = f"{where} is no piece of text: {error}"
        raise Fault(FaultKind.INVALID_REQUEST, message, f"a line is like {example}") from None


def passages(prompt: Sequence[int], ids: tuple[int, ...], longest: int) -> Iterator[Passage]:
    """Cover every token after the prompt once, with half of ``longest`` before it where there is as much.

    ``ids`` are those of prompt and completion together: a tokenizer may join them, or put a space between.
    """
    common = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False))
    )
    # A first token has nothing before it that could foresee it.
    done = max(1, common)
    while done < len(ids):
        start = 0 if len(ids) <= longest or done < longest // 2 else done - longest // 2
        end = min(len(ids), start + longest)
        yield Passage(ids[start:end], done - start)
        done = end


def perplexity(model: str, scores: Iterable[float]) -> Perplexity:
    """What the log-probabilities of all tokens come to. Raises ``Fault`` when there are none."""
    taken = list(scores)
    if not taken:
        message = "the text has no token that could be foreseen"
        raise Fault(FaultKind.INVALID_REQUEST, message, "give a longer text")
    mean = math.fsum(taken) / len(taken)
    try:
        return Perplexity(model, math.exp(-mean), len(taken))
    except OverflowError:
        return Perplexity(model, math.inf, len(taken))
