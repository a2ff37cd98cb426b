"""The data files of ``corpus/``, read into plain records."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fact:
    """A name in one language and what is known about it."""

    language: str
    name: str
    value: str


@dataclass(frozen=True)
class Difference:
    """Two things and the sentence that tells them apart."""

    language: str
    first: str
    second: str
    answer: str


@dataclass(frozen=True)
class Unit:
    """One ``source`` is ``factor`` times one ``target``."""

    language: str
    source: str
    single: str
    target: str
    factor: int


@dataclass(frozen=True)
class Topic:
    """Several ways to say one thing, the ones kept out of training, and the answer to all of them."""

    ask: list[str]
    hold: list[str]
    answer: str


@dataclass(frozen=True)
class Facts:
    """Everything the corpus is made from."""

    capitals: list[Fact]
    definitions: list[Fact]
    differences: list[Difference]
    units: list[Unit]
    topics: dict[str, Topic]
    systems: list[str]
    phrasings: dict[str, dict[str, list[str]]]
    answers: dict[str, str]


def load_facts(folder: Path) -> Facts:
    """Read the corpus data files in ``folder``."""
    chat = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    wording = json.loads((folder / "phrasings.json").read_text(encoding="utf-8"))
    return Facts(
        capitals=_bilingual(folder / "capitals.tsv"),
        definitions=_bilingual(folder / "definitions.tsv"),
        differences=[Difference(*row) for row in _rows(folder / "differences.tsv")],
        units=[unit for entry in chat["units"] for unit in _units(entry)],
        topics={name: Topic(**topic) for name, topic in chat["topics"].items()},
        systems=chat["systems"],
        phrasings={
            name: {key: value for key, value in entry.items() if key != "answer"}
            for name, entry in wording.items()
        },
        answers={name: entry["answer"] for name, entry in wording.items() if "answer" in entry},
    )


def _units(entry: dict[str, Any]) -> list[Unit]:
    factor = entry["factor"]
    chinese, english = entry["zh"], entry["en"]
    return [
        Unit("zh", chinese[0], chinese[0], chinese[1], factor),
        Unit("en", english[0], entry["one"], english[1], factor),
    ]


def _bilingual(path: Path) -> list[Fact]:
    facts = []
    for chinese, chinese_value, english, english_value in _rows(path):
        facts += [Fact("zh", chinese, chinese_value), Fact("en", english, english_value)]
    return facts


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
