"""Where settings come from: flag over environment over file over default, all problems at once."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from contract.faults import Fault, FaultKind, Problem, fault_of_problems
from daemon.mindie_config import is_mindie, read_mindie
from daemon.settings import Settings

ENV_PREFIX = "MINDPORT_"
_OTHER_PROGRAMS = frozenset(
    {"MINDPORT_URL", "MINDPORT_GRPC", "MINDPORT_API_KEY", "MINDPORT_WEIGHTS", "MINDPORT_DEBUG"}
)
_INTERNAL = ("MINDPORT_KERNELS_",)


@dataclass(frozen=True)
class Resolved:
    """Valid settings, where each came from, and what is worth a warning."""

    settings: Settings
    origins: dict[str, str]
    """Dotted setting name to ``default``, a file, a variable or a flag."""
    warnings: list[str]


def resolve(
    flags: Mapping[str, Any], config_file: Path | None = None, environ: Mapping[str, str] | None = None
) -> Resolved:
    """Merge all sources.

    Parameters
    ----------
    flags: dotted setting names to values, as given on the command line.
    config_file: YAML or JSON; MindIE's config.json is recognised, nested or in its short form.
    environ: by default the process environment.

    Raises
    ------
    Fault of kind INVALID_CONFIG with every problem of every source.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    warnings: list[str] = []
    problems: list[Problem] = []
    if config_file is not None:
        file_values = _read_file(config_file, warnings, problems)
        _merge(values, origins, _flatten(file_values), str(config_file))
    for name, (variable, text) in _environment(environ or os.environ, problems).items():
        _merge(values, origins, {name: text}, variable)
    for name, value in flags.items():
        _merge(values, origins, {name: value}, flag_name(name))
    settings = _validate(values, origins, problems)
    if problems or settings is None:
        raise fault_of_problems(FaultKind.INVALID_CONFIG, "the settings", problems)
    return Resolved(settings, _all_origins(origins), warnings)


def setting_names() -> dict[str, Any]:
    """Every setting by its dotted name, with its pydantic field."""
    names: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names.update({f"{name}.{inner}": inner_field for inner, inner_field in kind.model_fields.items()})
        else:
            names[name] = field
    return names


def is_list(field: Any) -> bool:
    """Whether a setting may be given several times."""
    return get_origin(field.annotation) is list


def env_name(name: str) -> str:
    return ENV_PREFIX + name.upper().replace(".", "__")


def flag_name(name: str) -> str:
    """The command line flag of a setting."""
    return "--" + name.replace("_", "-").replace(".", "-")


def _read_file(path: Path, warnings: list[str], problems: list[Problem]) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = "name a settings file that you may read, as deploy/daemon.yaml"
        raise Fault(FaultKind.INVALID_CONFIG, f"{path} cannot be read: {reason}", hint) from None
    try:
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        form = "JSON" if path.suffix == ".json" else "YAML"
        raise Fault(FaultKind.INVALID_CONFIG, f"{path} cannot be parsed: {error}", f"write {form}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise Fault(FaultKind.INVALID_CONFIG, f"{path} must hold settings", "write key: value, a line each")
    if is_mindie(data):
        return read_mindie(data, str(path), warnings, problems)
    return data


def _environment(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, tuple[str, Any]]:
    fields = setting_names()
    by_variable = {env_name(name): name for name in fields}
    found: dict[str, tuple[str, Any]] = {}
    for variable, text in environ.items():
        if (
            not variable.startswith(ENV_PREFIX)
            or variable in _OTHER_PROGRAMS
            or variable.startswith(_INTERNAL)
        ):
            continue
        name = by_variable.get(variable)
        if name is None:
            problems.append(Problem(variable, "unknown variable", _nearest(variable, list(by_variable))))
        else:
            found[name] = (variable, text.split(os.pathsep) if is_list(fields[name]) else text)
    return found


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    nested = {name.split(".")[0] for name in setting_names() if "." in name}
    for key, value in values.items():
        if key in nested and isinstance(value, dict):
            flat.update({f"{key}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[str(key)] = value
    return flat


def _merge(values: dict[str, Any], origins: dict[str, str], new: Mapping[str, Any], origin: str) -> None:
    fields = setting_names()
    for name, value in new.items():
        single = name in fields and is_list(fields[name]) and isinstance(value, str)
        values[name] = [value] if single else value
        origins[name] = origin


def _validate(values: dict[str, Any], origins: dict[str, str], problems: list[Problem]) -> Settings | None:
    known = setting_names()
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            problems.append(
                Problem(f"{origins[name]}: {name}", "unknown setting", _nearest(name, list(known)))
            )
            continue
        room, _, inner = name.partition(".")
        if inner:
            nested.setdefault(room, {})[inner] = value
        else:
            nested[room] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        problems.extend(_problem(item, origins) for item in error.errors())
        return None


def _problem(item: Any, origins: Mapping[str, str]) -> Problem:
    name = ".".join(str(part) for part in item["loc"] if not isinstance(part, int) and part != "int")
    message = str(item["msg"]).removeprefix("Value error, ")
    if not name:
        return Problem("", message)
    field = setting_names().get(name)
    remedy = field.description if field is not None else ""
    got = f", got {item['input']!r}" if not isinstance(item["input"], dict) else ""
    return Problem(f"{origins.get(name, 'default')}: {name}", message + got, remedy)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]}?" if close else "see daemon start --help"


def _all_origins(origins: Mapping[str, str]) -> dict[str, str]:
    return {name: origins.get(name, "default") for name in setting_names()}
