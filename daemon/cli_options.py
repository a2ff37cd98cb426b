"""Command line options made from the settings model: one flag a setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from daemon.settings import Settings
from daemon.settings_sources import env_name, flag_name, is_list, resolve, setting_names

STATE_SETTINGS = ("state_dir", "management_port")
"""What names a running daemon."""


def setting_options(names: tuple[str, ...] | None = None) -> Callable[[Any], Any]:
    """Decorate a command with ``--config`` and a flag for each of ``names``, or for every setting."""
    fields = setting_names()

    def decorate(command: Any) -> Any:
        for name in reversed(names or tuple(fields)):
            command = _option(name, fields[name])(command)
        config_help = "Settings file: YAML, JSON, or MindIE's config.json."
        return click.option("--config", type=click.Path(path_type=Path), help=config_help)(command)

    return decorate


def settings_from(options: Mapping[str, Any]) -> tuple[Settings, dict[str, str], list[str]]:
    """Settings, origins and warnings from a command's parameters. Raises ``Fault``."""
    by_parameter = {_parameter(name): name for name in setting_names()}
    flags = {
        by_parameter[key]: list(value) if isinstance(value, tuple) else value
        for key, value in options.items()
        if key in by_parameter and value is not None and value != ()
    }
    resolved = resolve(flags, options.get("config"))
    return resolved.settings, resolved.origins, resolved.warnings


def _parameter(name: str) -> str:
    return name.replace(".", "_")


def _option(name: str, field: Any) -> Callable[[Any], Any]:
    flag = flag_name(name)
    text = f"{field.description[0].upper()}{field.description[1:]}. [{env_name(name)}{_default(field)}]"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", _parameter(name), default=None, help=text)
    return click.option(
        flag, _parameter(name), multiple=is_list(field), help=text, metavar=_metavar(name, field)
    )


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or value == []:
        return ""
    shown = " ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return f"; default {shown.lower() if isinstance(value, bool) else shown}"


def _metavar(name: str, field: Any) -> str:
    if name.endswith("_port"):
        return "PORT|off"
    if name.endswith(("_dir", "_file", "repository")):
        return "PATH"
    if getattr(field.annotation, "__args__", None) and all(
        isinstance(a, str) for a in field.annotation.__args__
    ):
        return "|".join(field.annotation.__args__)
    return "TEXT" if name.endswith(("model", "host")) else "NUMBER"
