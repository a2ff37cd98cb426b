"""Merges what yaml, config.json and recipe say about a model into one: yaml over HuggingFace over recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.families.base import ConsistencyRule, Family, FieldRule, Kind
from contract.faults import Problem


@dataclass(frozen=True)
class Source:
    """One opinion about the architecture, under config.json names."""

    name: str
    """As messages show it: ``predict_x.yaml``, ``config.json``, ``recipe``."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Disagreement:
    """Two sources say different things about one value."""

    field: str
    used: Any
    source: str
    others: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        rest = ", ".join(f"{name} says {value!r}" for name, value in self.others)
        return f"{self.field}: {self.source} says {self.used!r} and is followed; {rest}"

    def to_dict(self) -> dict[str, Any]:
        others = [{"source": name, "value": value} for name, value in self.others]
        return {"field": self.field, "used": self.used, "source": self.source, "others": others}


@dataclass(frozen=True)
class Architecture:
    values: dict[str, Any]
    disagreements: tuple[Disagreement, ...]
    problems: tuple[Problem, ...]


def merge(family: Family, sources: list[Source]) -> Architecture:
    """One value per field from sources in order of strength, with every disagreement and every problem."""
    values: dict[str, Any] = {}
    disagreements: list[Disagreement] = []
    problems: list[Problem] = []
    for rule in family.fields:
        said = [(source.name, source.values[rule.hf]) for source in sources if rule.hf in source.values]
        if said:
            name, used = said[0]
            values[rule.hf] = used
            others = tuple((other, value) for other, value in said[1:] if not same_value(value, used))
            if others:
                disagreements.append(Disagreement(rule.hf, used, name, others))
            problems.extend(_out_of_range(rule, name, used))
        elif rule.required and not any(key in source.values for source in sources for key in rule.same_as):
            spelling = f"{rule.yaml} in the yaml" if rule.yaml else rule.hf
            names = ", ".join(source.name for source in sources)
            problems.append(Problem(rule.hf, f"none of {names} has it", f"add {spelling}"))
        elif rule.default is not None:
            values[rule.hf] = rule.default
    for rule in family.fields:
        other = next((key for key in rule.same_as if key in values), None)
        if rule.hf not in values and other is not None:
            values[rule.hf] = values[other]
    for check in family.rules:
        problems.extend(_inconsistent(check, values, sources))
    return Architecture(values, tuple(disagreements), tuple(problems))


def same_value(first: Any, second: Any) -> bool:
    """Equal as far as a model is concerned: 1 and 1.0 are, and so are 1e-5 and its neighbours."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, int | float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=1e-9)
    if isinstance(first, list) != isinstance(second, list):
        return bool(
            (first if isinstance(first, list) else [first])
            == (second if isinstance(second, list) else [second])
        )
    return bool(first == second)


def checked_value(kind: Kind, value: Any) -> tuple[Any, str]:
    """The value in its kind's type and, when it has the wrong one, what was expected instead."""
    if kind == "bool":
        return value, "" if isinstance(value, bool) else "true or false"
    if kind == "int":
        return value, "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if kind == "float":
        if isinstance(value, str):  # YAML 1.1 reads 1e-5 as a string
            try:
                value = float(value)
            except ValueError:
                return value, "a number"
        return value, "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if kind == "str":
        return value, "" if isinstance(value, str) else "text"
    if kind == "ids":
        ids = value if isinstance(value, list) and value else [value]
        ok = all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids)
        return value, "" if ok else "a token id or a list of them"
    return value, ""


def _out_of_range(rule: FieldRule, source: str, value: Any) -> list[Problem]:
    if rule.minimum is None or not isinstance(value, int | float) or value >= rule.minimum:
        return []
    return [Problem(f"{source}  {rule.hf}", f"{value} is too small", f"it is at least {rule.minimum}")]


def _inconsistent(check: ConsistencyRule, values: Mapping[str, Any], sources: list[Source]) -> list[Problem]:
    value, limit = values.get(check.value), values.get(check.limit)
    if not isinstance(value, int) or not isinstance(limit, int):
        return []
    if check.unless is not None and values.get(check.unless):
        return []
    relations = {
        "multiple_of": (limit > 0 and value % limit == 0, "is not a multiple of"),
        "at_most": (value <= limit, "is more than"),
        "below": (value < limit, "is not below"),
    }
    fine, phrase = relations[check.relation]
    if fine:
        return []
    where = next((source.name for source in sources if check.value in source.values), "recipe")
    message = f"{value} {phrase} {check.limit} ({limit})"
    return [Problem(f"{where}  {check.value}", message, check.remedy)]
