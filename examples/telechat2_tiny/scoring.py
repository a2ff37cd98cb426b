"""The held-out questions and the rule that decides whether an answer is right."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prompts import Turn, prompt


@dataclass(frozen=True)
class Question:
    """One held-out conversation; the last turn's answer is what the model should say."""

    category: str
    form: str
    system: str | None
    turns: tuple[Turn, ...]
    keys: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The whole prompt as text, control pieces included."""
        return prompt(self.form, list(self.turns), self.system)

    def accepts(self, answer: str) -> bool:
        """Compare without white space: all keys must stand in the answer; without keys all must match."""
        squeezed = _squeeze(answer)
        if not self.keys:
            return squeezed == _squeeze(self.turns[-1].answer)
        return all(_stands_in(_squeeze(key), squeezed) for key in self.keys)


@dataclass(frozen=True)
class Score:
    """How many questions of a group were answered right."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.total if self.total else 0.0


def load_questions(path: Path) -> list[Question]:
    """Read ``heldout.jsonl``."""
    questions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = tuple(Turn(**turn) for turn in row["turns"])
        questions.append(Question(row["category"], row["form"], row["system"], turns, tuple(row["keys"])))
    return questions


def report(results: Iterable[tuple[Question, bool]]) -> dict[str, dict[str, Score]]:
    """Count right answers per category, per form, and overall."""
    table: dict[str, dict[str, Score]] = {"overall": {}, "category": {}, "form": {}}
    for question, right in results:
        groups = (("overall", "all"), ("category", question.category), ("form", question.form))
        for kind, name in groups:
            score = table[kind].get(name, Score(0, 0))
            table[kind][name] = Score(score.right + right, score.total + 1)
    return table


def format_report(table: dict[str, dict[str, Score]]) -> str:
    """Lay the counts out as lines of text."""
    lines = []
    for kind, scores in table.items():
        for name, score in scores.items():
            lines.append(f"{kind:9} {name:24} {score.right:4}/{score.total:<4} {score.accuracy:7.1%}")
    return "\n".join(lines)


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _stands_in(key: str, answer: str) -> bool:
    """Find ``key`` in ``answer``, not as part of a longer number."""
    before = r"(?<!\d)" if key[0].isdigit() else ""
    after = r"(?!\d)" if key[-1].isdigit() else ""
    return re.search(before + re.escape(key) + after, answer) is not None
