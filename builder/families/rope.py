"""How positions are turned: which ``rope_scaling`` the network computes, and how far it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract.faults import Problem

_WHERE = "config.json  rope_scaling"
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "longrope": (),
}
"""Form -> the numbers it cannot do without."""


def rope_form(config: Mapping[str, Any]) -> str:
    """``rope_type`` of the config, ``default`` where nothing is scaled."""
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, Mapping):
        return "default"
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def longest_context(config: Mapping[str, Any]) -> int:
    """Positions that the config's rotary embedding is made for."""
    trained = int(config["max_position_embeddings"])
    if rope_form(config) != "dynamic":
        return trained
    return int(trained * float(config["rope_scaling"]["factor"]))


def rope_problems(config: Mapping[str, Any]) -> list[Problem]:
    """What would be turned wrongly without a word."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return []
    remedy = "take a model with another rope_scaling, or wait for a MindPort that supports it"
    if not isinstance(scaling, Mapping):
        return [Problem(_WHERE, f"is {scaling!r}", "write the publisher's mapping, or null")]
    form = rope_form(config)
    if form not in _NUMBERS:
        known = ", ".join(_NUMBERS)
        return [Problem(_WHERE, f"is {form!r}; the network knows {known}", remedy)]
    problems = []
    for key in _NUMBERS[form]:
        value = scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            message = f"{form!r} needs a positive number {key}, and has {value!r}"
            problems.append(Problem(f"{_WHERE}.{key}", message, "copy it from the publisher's config.json"))
    if form == "longrope" and not all(
        isinstance(scaling.get(k), list) for k in ("short_factor", "long_factor")
    ):
        message = "'longrope' needs the lists short_factor and long_factor"
        problems.append(Problem(_WHERE, message, "copy them from the publisher's config.json"))
    return problems
