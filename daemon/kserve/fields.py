"""Request fields checked against a closed pydantic model, all problems in one fault.

Three classes of field: known ones, known ones that this server cannot honour (accepted only with a value
that changes nothing), and unknown ones, refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict

from contract.faults import Fault, FaultKind


class Fields(BaseModel):
    """Base of every request body."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Known fields that cannot be honoured, each with the values that ask for nothing; null always does."""


F = TypeVar("F", bound=Fields)

_MOST_UNKNOWN = 64
"""Further unknown fields are nobody's typing mistake, and each costs a search for its nearest name."""
_MOST_PROBLEMS = 16
_LONGEST_NAME = 64


def parse(model: type[F], data: Mapping[str, Any], where: str = "", *, strict: bool = True) -> F:
    """Check ``data`` against ``model``. ``where`` is a prefix for field names in messages.

    Raises ``Fault``: UNSUPPORTED for a field that cannot be honoured, INVALID_REQUEST for all else.
    """
    known = without_unsupported(model, data, where)
    declared = model.model_fields
    unknown = [name for name in known if name not in declared]
    if len(unknown) > _MOST_UNKNOWN:
        message = f"{where}{_short(unknown[0])} and {len(unknown) - 1} more fields are unknown"
        param = {"param": where + _short(unknown[0])}
        raise Fault(FaultKind.INVALID_REQUEST, message, "leave them out", param)
    try:
        return model.model_validate(known, strict=strict)
    except pydantic.ValidationError as error:
        raise _fault(model, error, where) from None


def without_unsupported(model: type[Fields], data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    refused = [
        name
        for name, value in data.items()
        if name in model.unsupported and value is not None and not _is_neutral(value, model.unsupported[name])
    ]
    if refused:
        names = [where + name for name in sorted(refused)]
        text = ", ".join(f"'{name}'" for name in names)
        message = f"{text} {'is' if len(names) == 1 else 'are'} not supported by this server"
        raise Fault(FaultKind.UNSUPPORTED, message, "leave it out of the request", {"param": names[0]})
    return {name: value for name, value in data.items() if name not in model.unsupported}


def _is_neutral(value: Any, neutral: Iterable[Any]) -> bool:
    return any(type(value) is type(candidate) and value == candidate for candidate in neutral) or any(
        isinstance(candidate, float) and not isinstance(value, bool) and value == candidate
        for candidate in neutral
    )


def _fault(model: type[Fields], error: pydantic.ValidationError, where: str) -> Fault:
    known = [*model.model_fields, *model.unsupported]
    names: list[str] = []
    sentences: list[str] = []
    found = error.errors(include_url=False, include_context=False, include_input=False)
    for problem in found[:_MOST_PROBLEMS]:
        name = where + ".".join(_short(str(part)) for part in problem["loc"])
        names.append(name)
        sentences.append(f"{name}: {_sentence(problem, known)}" if name else _sentence(problem, known))
    if len(found) > _MOST_PROBLEMS:
        sentences.append(f"and {len(found) - _MOST_PROBLEMS} more problems")
    problems = [{"where": name, "message": text} for name, text in zip(names, sentences, strict=False)]
    return Fault(
        FaultKind.INVALID_REQUEST, "; ".join(sentences), "", {"param": names[0], "problems": problems}
    )


def _sentence(problem: Mapping[str, Any], known: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(_short(str(problem["loc"][-1])), known, n=1)
        return f"unknown field, did you mean '{near[0]}'?" if near else "unknown field"
    if problem["type"] == "missing":
        return "this field is required"
    text = str(problem["msg"])
    return text.removeprefix("Value error, ").replace("Input should be", "must be")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"
