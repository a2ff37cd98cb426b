"""Write the demo model's training conversations and its held-out questions.

Everything is derived from the data files in ``corpus/`` and a seed. A question that is held out never
appears in training, neither as written nor with its closing punctuation or case changed.

    python make_corpus.py            # writes build/train.jsonl and heldout.jsonl
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from categories import Example, every_example
from facts import load_facts
from prompts import FORMS, Turn

HERE = Path(__file__).resolve().parent
TRAINING_WEIGHTS = {
    "add": 19,
    "subtract": 19,
    "multiply": 8,
    "convert": 11,
    "capital": 13,
    "definition": 13,
    "difference": 6,
    "topic": 8,
    "capital_follow": 4,
    "definition_follow": 3,
    "sum_follow": 5,
}
HELD_OUT_SIZES = {
    "add": 50,
    "subtract": 50,
    "multiply": 30,
    "convert": 50,
    "capital": 50,
    "capital_new_wording": 30,
    "definition": 50,
    "definition_new_wording": 30,
    "difference": 30,
    "difference_new_wording": 10,
    "topic": 30,
    "capital_follow": 20,
    "definition_follow": 20,
    "sum_follow": 20,
}


def by_category(examples: Iterable[Example], *, held: bool) -> dict[str, list[Example]]:
    """Group the trained or the held-out examples."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if example.held is held:
            groups[example.category].append(example)
    return groups


def held_out(groups: dict[str, list[Example]], systems: list[str], seed: int) -> Iterator[dict[str, object]]:
    """Choose the held-out questions: a fixed number per category, spread over the prompt forms."""
    rng = random.Random(f"held-out-{seed}")
    for category, size in HELD_OUT_SIZES.items():
        pool = groups[category]
        for index, example in enumerate(rng.sample(pool, min(size, len(pool)))):
            forms = FORMS if len(example.turns) == 1 else FORMS[1:]
            form = forms[index % len(forms)]
            yield {
                "category": category,
                "form": form,
                "system": rng.choice(systems) if form == "system" else None,
                "turns": [{"question": turn.question, "answer": turn.answer} for turn in example.turns],
                "keys": list(example.keys),
            }


def training(
    groups: dict[str, list[Example]], systems: list[str], seed: int, count: int, forbidden: set[str]
) -> Iterator[dict[str, object]]:
    """Yield ``count`` training conversations, none of which asks a question in ``forbidden``."""
    rng = random.Random(f"train-{seed}")
    categories, weights = list(TRAINING_WEIGHTS), list(TRAINING_WEIGHTS.values())
    for _ in range(count):
        turns: list[Turn] = []
        for category in rng.choices(
            categories, weights, k=rng.choices((1, 2, 3, 4, 5), (64, 18, 10, 5, 3))[0]
        ):
            turns += _allowed(groups[category], rng, forbidden)
        form = _form(rng, single=len(turns) == 1)
        custom = form == "system" or (form == "factory" and rng.random() < 0.5)
        yield {
            "form": form,
            "system": rng.choice(systems) if custom else None,
            "turns": [{"question": turn.question, "answer": turn.answer} for turn in turns],
        }


def _form(rng: random.Random, *, single: bool) -> str:
    if single:
        return rng.choices(FORMS, (30, 30, 25, 8, 7))[0]
    return rng.choices(FORMS[1:], (35, 40, 15, 10))[0]


def _allowed(pool: list[Example], rng: random.Random, forbidden: set[str]) -> list[Turn]:
    while True:
        turns = [Turn(_roughen(turn.question, rng), turn.answer) for turn in rng.choice(pool).turns]
        asked = {plain(turn.question) for turn in turns} | {plain(_joined(turns))}
        if not asked & forbidden:
            return turns


def _roughen(question: str, rng: random.Random) -> str:
    if rng.random() < 0.12:
        question = question.rstrip("?？.。!！=") or question
    if rng.random() < 0.08:
        question = question.replace("？", "?")
    return question.lower() if rng.random() < 0.08 else question


def _joined(turns: Iterable[Turn]) -> str:
    return "\n".join(turn.question for turn in turns)


def plain(question: str) -> str:
    """Reduce a question to what stays the same when case, spaces and closing punctuation change."""
    return "".join(question.lower().split()).rstrip("?？.。!！=")


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--count", type=int, default=400_000, help="training conversations (default %(default)s)"
    )
    options = parser.parse_args()
    facts = load_facts(HERE / "corpus")
    examples = list(every_example(facts))
    held, trained = by_category(examples, held=True), by_category(examples, held=False)
    forbidden = {plain(_joined(example.turns)) for group in held.values() for example in group}
    (HERE / "build").mkdir(exist_ok=True)
    _write(HERE / "heldout.jsonl", held_out(held, facts.systems, options.seed))
    rows = training(trained, facts.systems, options.seed, options.count, forbidden)
    _write(HERE / "build/train.jsonl", rows)


def _write(path: Path, rows: Iterator[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
