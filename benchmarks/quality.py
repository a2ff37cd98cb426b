"""How often rounded weights change the demo model's next token: teacher-forced on its held-out questions."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.engines import Engine
from benchmarks.lines import ROOT
from benchmarks.load import EngineError
from benchmarks.mindport import EngineAlone

EXAMPLE = ROOT / "examples" / "telechat2_tiny"


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation as token ids."""

    ids: list[int]
    learned: list[bool]
    """Which of them the model has to write; the others are questions, which nobody can foresee."""


@dataclass(slots=True)
class Comparison:
    """Next tokens of one format after the other, float32 first."""

    texts: list[Text]
    _reference: list[list[int]] = field(default_factory=list)

    def ask(self, engine: Engine) -> dict[str, float]:
        """For ``Visitor.visit``."""
        if not isinstance(engine, EngineAlone):
            raise EngineError("only the engine alone is asked for likely tokens")
        said: list[list[int]] = engine.ask({"score": [text.ids for text in self.texts]})["next"]
        self._reference = self._reference or said
        return shares(self.texts, self._reference, said)


def shares(texts: list[Text], reference: list[list[int]], said: list[list[int]]) -> dict[str, float]:
    """Percent of next tokens that are as the reference's, and as the text's own."""
    same, right, same_anywhere = [], [], []
    for text, expected, got in zip(texts, reference, said, strict=True):
        rows = zip(text.ids[1:], text.learned[1:], expected, got, strict=True)
        for token, learned, wanted, likeliest in rows:
            same_anywhere.append(wanted == likeliest)
            if learned:
                same.append(wanted == likeliest)
                right.append(token == likeliest)
    return {
        "same_share": _percent(same),
        "same_anywhere_share": _percent(same_anywhere),
        "right_share": _percent(right),
        "tokens": float(len(same)),
    }


def held_out(tokenizer: Path, most: int | None = None) -> list[Text]:
    """The questions with their answers, in the prompt forms that the model knows."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    forms: Any = importlib.import_module("prompts")
    scoring: Any = importlib.import_module("scoring")
    encoder = Tokenizer.from_file(str(tokenizer))
    questions = scoring.load_questions(EXAMPLE / "heldout.jsonl")[:most]
    return [
        _encode(encoder, forms.segments(question.form, list(question.turns), question.system))
        for question in questions
    ]


def _encode(encoder: Tokenizer, segments: list[Any]) -> Text:
    ids: list[int] = []
    learned: list[bool] = []
    for segment in segments:
        part = encoder.encode(segment.text, add_special_tokens=False).ids
        ids += part
        learned += [segment.learned] * len(part)
    return Text(ids, learned)


def _percent(hits: list[bool]) -> float:
    return 100 * sum(hits) / len(hits) if hits else 0.0
