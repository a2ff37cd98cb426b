"""Options of a backend: a closed set, so that a misspelt one is a fault and never silence."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

import msgspec

from contract.faults import Fault, FaultKind, Problem, fault_of_problems

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


def read_options(schema: type[OptionsT], options: dict[str, Any], backend: str) -> OptionsT:
    """``options`` as ``schema``, all unknown keys reported at once. Raises ``Fault``."""
    known = [field.name for field in msgspec.structs.fields(schema)]
    problems = [_unknown(key, known) for key in options if key not in known]
    if problems:
        subject = f"the options of backend {backend}"
        raise fault_of_problems(FaultKind.INVALID_CONFIG, subject, problems)
    try:
        return msgspec.convert(options, schema)
    except msgspec.ValidationError as error:
        hint = 'correct "serving": {"options": ...} in the model\'s config.json, or the daemon\'s settings'
        raise Fault(FaultKind.INVALID_CONFIG, f"options of backend {backend}: {error}", hint) from None


def _unknown(key: str, known: list[str]) -> Problem:
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f'did you mean "{near[0]}"?' if near else f"known options: {', '.join(known)}"
    return Problem(key, "no such option", remedy)
