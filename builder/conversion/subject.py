"""Which model a checkpoint is of: its family and the numbers that its packing depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.architecture import Architecture, Source, checked_value, merge
from builder.checkpoints.layouts.packing import Facts
from builder.families import family_named, family_of_config
from builder.families.base import Family
from builder.hf_folder import CONFIG, classic_spelling, find_recipe
from contract.faults import Fault, FaultKind, fault_of_problems

_META_CONFIG = "params.json"
_META_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
}


@dataclass(frozen=True)
class Subject:
    """A model, as far as it is known."""

    family: Family | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """Of its config.json; empty when nobody said."""
    complete: bool = False
    """Whether every tensor's shape follows from the values."""

    @property
    def facts(self) -> Facts:
        return facts_of(self.family, self.values) if self.family is not None else Facts()


def facts_of(family: Family, values: Mapping[str, Any]) -> Facts:
    """What packings need to know."""
    heads = values.get(family.heads)
    if not isinstance(heads, int) or not isinstance(values.get("hidden_size"), int):
        return Facts()
    kv_heads = values.get(family.kv_heads) or heads
    return Facts(
        heads, int(kv_heads), family.head_dim(values), values["hidden_size"], values.get("vocab_size")
    )


def find_subject(model: str | None, source: Path) -> Subject:
    """The model that the user names, or that a config.json beside the weights describes. Raises ``Fault``."""
    folder = source if source.is_dir() else source.parent
    config = _read(folder / CONFIG)
    if model is not None:
        recipe_file = find_recipe(model)
        recipe = recipe_file.recipe
        if recipe_file.from_folder or config is None:
            config = _read(recipe_file.default_sources() / CONFIG)
        family = family_named(recipe.family)
        return _subject(family, {"config.json": config or {}, "recipe": recipe.architecture})
    if config is not None:
        return _subject(family_of_config(config, str(folder / CONFIG)), {"config.json": config})
    params = _read(folder / _META_CONFIG)
    if params is not None:
        counted = {key: value for key, value in params.items() if type(value) is int and value > 0}
        return Subject(family_named("llama"), {_META_KEYS.get(key, key): counted[key] for key in counted})
    return Subject()


def _subject(family: Family, configs: Mapping[str, Mapping[str, Any]]) -> Subject:
    sources = []
    for name, config in configs.items():
        classic = classic_spelling(config)
        known = {family.aliases.get(key, key): value for key, value in classic.items()}
        sources.append(Source(name, {key: value for key, value in known.items() if family.rule_of(key)}))
    wrong = [
        f"{source.name}  {key}"
        for source in sources
        for key, value in source.values.items()
        if value is not None and (rule := family.rule_of(key)) and checked_value(rule.kind, value)[1]
    ]
    if wrong:
        message = f"{', '.join(wrong)} has the wrong type"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch config.json again")
    found: Architecture = merge(family, sources)
    serious = [problem for problem in found.problems if "none of" not in problem.message]
    if serious:
        raise fault_of_problems(FaultKind.INVALID_MODEL, "config.json", serious)
    return Subject(family, found.values, complete=not found.problems)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise Fault(FaultKind.INVALID_MODEL, message, "check its permissions") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        message = f"{path} is not a JSON object"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch the file again") from None
    return content
