"""What can be asked: every conversation the corpus knows, each marked as trained or held out.

Which arithmetic pairs, conversions and wordings are held out is decided by a checksum of the question's
key, so the split needs no stored state.
"""

import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from facts import Fact, Facts, Unit
from prompts import Turn

_ALWAYS_TRAINED = ("生抽与老抽的区别？", "生抽和老抽有什么区别？")
_SUM_FOLLOWS = 60_000


@dataclass(frozen=True)
class Example:
    """A conversation; the last answer needs all ``keys``, or to match exactly if there are none."""

    category: str
    turns: tuple[Turn, ...]
    held: bool
    keys: tuple[str, ...] = ()


def every_example(facts: Facts) -> Iterator[Example]:
    """Yield all conversations of all categories."""
    generators: tuple[Callable[[Facts], Iterator[Example]], ...] = (
        _sums,
        _products,
        _sum_follows,
        _conversions,
        _known_facts,
        _fact_follows,
        _differences,
        _topics,
    )
    for generator in generators:
        yield from generator(facts)


def _is_held(key: str, percent: int) -> bool:
    return zlib.crc32(key.encode()) % 100 < percent


def _calculation(facts: Facts, name: str, a: int, b: int, wording: str, *, held: bool) -> Example:
    value = {"add": a + b, "subtract": a - b, "multiply": a * b}[name]
    turn = Turn(wording.format(a=a, b=b), facts.answers[name].format(a=a, b=b, c=value))
    return Example(name, (turn,), held, (f"={value}",))


def _pair_is_held(name: str, a: int, b: int) -> bool:
    low, high = (min(a, b), max(a, b)) if name == "add" else (a, b)
    return _is_held(f"{name} {low} {high}", 5)


def _sums(facts: Facts) -> Iterator[Example]:
    for total, part in itertools.product(range(101), repeat=2):
        if part > total:
            continue
        for name, a, b in (("add", part, total - part), ("subtract", total, part)):
            held = _pair_is_held(name, a, b)
            for wording in facts.phrasings[name]["train"]:
                yield _calculation(facts, name, a, b, wording, held=held)


def _products(facts: Facts) -> Iterator[Example]:
    table = list(itertools.product(range(1, 13), repeat=2))
    conversions = [(a, b) for a in range(1, 21) for b in (7, 12, 24, 60)]
    for a, b in table + conversions:
        for wording in facts.phrasings["multiply"]["train"]:
            held = (a, b) in table and _is_held(f"{wording} {a} {b}", 6)
            yield _calculation(facts, "multiply", a, b, wording, held=held)


def _sum_follows(facts: Facts) -> Iterator[Example]:
    rng = random.Random("sum follow")
    for _ in range(_SUM_FOLLOWS):
        name, then = rng.choices(("add", "subtract"), k=2)
        total = rng.randint(0, 100)
        part = rng.randint(0, total)
        a, b = (part, total - part) if name == "add" else (total, part)
        value = total if name == "add" else total - part
        extra = rng.randint(0, min(20, 100 - value if then == "add" else value))
        if _pair_is_held(name, a, b) or _pair_is_held(then, value, extra):
            continue
        first = _calculation(facts, name, a, b, rng.choice(facts.phrasings[name]["train"]), held=False)
        wording = rng.choice(facts.phrasings[then]["follow"])
        second = _calculation(facts, then, value, extra, wording, held=False)
        held = _is_held(f"{name} {a} {b} {then} {extra}", 5)
        yield Example("sum_follow", first.turns + second.turns, held, second.keys)


def _conversions(facts: Facts) -> Iterator[Example]:
    for unit in facts.units:
        for number in range(1, 51 if unit.factor in (10, 100, 1000) else 21):
            for wording in facts.phrasings[f"convert_{unit.language}"]["train"]:
                yield _conversion(facts, unit, number, str(number), wording)
                if number == 1:
                    yield _conversion(facts, unit, number, "一" if unit.language == "zh" else "one", wording)


def _conversion(facts: Facts, unit: Unit, number: int, written: str, wording: str) -> Example:
    amount = str(number * unit.factor)
    shown = amount if unit.factor in (10, 100, 1000) else f"{number}×{unit.factor}={amount}"
    source = unit.single if number == 1 else unit.source
    question = wording.format(n=written, u=source, v=unit.target)
    answer = facts.answers[f"convert_{unit.language}"].format(n=number, u=source, v=unit.target, m=shown)
    held = number > 1 and _is_held(f"{unit.source} {number}", 8)
    return Example("convert", (Turn(question, answer),), held, (f"{amount}{unit.target}",))


def _fact_turn(facts: Facts, kind: str, fact: Fact, wording: str) -> Turn:
    answer = facts.answers.get(kind, "{y}").format(x=fact.name, y=fact.value)
    return Turn(wording.format(x=fact.name), answer)


def _known_facts(facts: Facts) -> Iterator[Example]:
    for category, known in (("capital", facts.capitals), ("definition", facts.definitions)):
        for fact in known:
            kind = f"{category}_{fact.language}"
            keys = (fact.value,) if category == "capital" else ()
            for wording in facts.phrasings[kind]["train"]:
                held = _is_held(f"{wording} {fact.name}", 7)
                yield Example(category, (_fact_turn(facts, kind, fact, wording),), held, keys)
            for wording in facts.phrasings[kind]["new"]:
                yield Example(
                    f"{category}_new_wording", (_fact_turn(facts, kind, fact, wording),), True, keys
                )


def _fact_follows(facts: Facts) -> Iterator[Example]:
    rng = random.Random("fact follow")
    for category, known in (("capital", facts.capitals), ("definition", facts.definitions)):
        for first, second in itertools.permutations(known, 2):
            if first.language != second.language:
                continue
            kind = f"{category}_{first.language}"
            opening = _fact_turn(facts, kind, first, rng.choice(facts.phrasings[kind]["train"]))
            closing = _fact_turn(facts, kind, second, rng.choice(facts.phrasings[kind]["follow"]))
            held = _is_held(f"{first.name} {second.name}", 5)
            keys = (second.value,) if category == "capital" else ()
            yield Example(f"{category}_follow", (opening, closing), held, keys)


def _differences(facts: Facts) -> Iterator[Example]:
    for item in facts.differences:
        for first, second in ((item.first, item.second), (item.second, item.first)):
            for wording in facts.phrasings[f"difference_{item.language}"]["train"]:
                question = wording.format(x=first, y=second)
                held = _is_held(question, 10) and question not in _ALWAYS_TRAINED
                yield Example("difference", (Turn(question, item.answer),), held)
            for wording in facts.phrasings[f"difference_{item.language}"]["new"]:
                question = wording.format(x=first, y=second)
                yield Example("difference_new_wording", (Turn(question, item.answer),), True)


def _topics(facts: Facts) -> Iterator[Example]:
    for topic in facts.topics.values():
        for question in topic.ask:
            yield Example("topic", (Turn(question, topic.answer),), False)
        for question in topic.hold:
            yield Example("topic", (Turn(question, topic.answer),), True)
