"""Bring what derives from the settings model up to date: deploy/daemon.yaml and docs/*/settings.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from generated import between, table, translate, write_or_check

from daemon.settings_sources import env_name, flag_name, setting_names

HEADER = """\
# Settings of the MindPort daemon; written by scripts/update_settings_reference.py from daemon/settings.py.
# Every setting is here with its default, commented out. A flag wins over a MINDPORT_ variable, which wins
# over this file. Try a change with: daemon check --config daemon.yaml --show-origin
"""


def default_of(field: Any) -> Any:
    """The default as JSON has it."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, list):
        return [str(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def example_file() -> str:
    """deploy/daemon.yaml."""
    lines: list[str] = []
    room = ""
    for name, field in setting_names().items():
        outer, _, inner = name.rpartition(".")
        lines.append("")
        if outer != room:
            lines += [f"#{outer}:"]
            room = outer
        indent = "  " if outer else ""
        lines += [f"# {indent}{field.description}{_choices(field)}"]
        lines += [f"#{indent}{inner}: {json.dumps(default_of(field))}"]
    return HEADER + "\n".join(lines) + "\n"


def rows(words: dict[str, str] | None) -> list[list[str]]:
    """The reference table, one setting a row."""
    found = []
    for name, field in setting_names().items():
        text = words[field.description] if words else field.description
        default = default_of(field)
        flag = flag_name(name)
        shown = "" if default in (None, []) else f"`{json.dumps(default)}`"
        found.append([f"`{name}`", f"`{flag}`", f"`{env_name(name)}`", shown, text + _choices(field)])
    return found


def _choices(field: Any) -> str:
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    return f" ({', '.join(choices)})" if choices else ""


def main() -> int:
    words = translate([field.description for field in setting_names().values()])
    english = table(["setting", "flag", "variable", "default", "meaning"], rows(None))
    chinese = table(["设置", "命令行参数", "环境变量", "默认值", "含义"], rows(words))
    files = {
        "deploy/daemon.yaml": example_file(),
        "docs/en/settings.md": between("docs/en/settings.md", english),
        "docs/zh/settings.md": between("docs/zh/settings.md", chinese),
    }
    return write_or_check(__doc__ or "", files)


if __name__ == "__main__":
    raise SystemExit(main())
