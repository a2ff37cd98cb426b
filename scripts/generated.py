"""Writes generated documents, or with ``--check`` tells which are stale. Used by the update scripts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
TRANSLATIONS = ROOT / "docs" / "zh" / "translations.yaml"
"""Chinese for the English sentences of generated tables; a sentence that changed is missing from it."""


def write_or_check(description: str, files: Mapping[str, str]) -> int:
    """Write ``files`` (path from the root to text), or compare them; returns the exit code."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when a file is stale")
    check = parser.parse_args().check
    stale = [name for name, text in files.items() if _current(ROOT / name) != text]
    for name in stale:
        if not check:
            (ROOT / name).write_text(files[name], "utf-8")
        print(f"{name} is stale" if check else f"wrote {name}")
    if not stale:
        print("generated documents are up to date")
    return 1 if check and stale else 0


def between(name: str, content: str) -> str:
    """The text of the document ``name`` with ``content`` between its two markers."""
    begin, end = "<!-- generated: begin -->\n", "<!-- generated: end -->"
    head, rest = (ROOT / name).read_text("utf-8").split(begin)
    return head + begin + "\n" + content + "\n" + end + rest.split(end)[1]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def translate(sentences: Sequence[str]) -> dict[str, str]:
    """Chinese by English sentence; ends the program naming the missing ones."""
    known: dict[str, str] = yaml.safe_load(TRANSLATIONS.read_text("utf-8"))
    missing = [sentence for sentence in sentences if sentence not in known]
    if missing:
        lines = "\n".join(f"  {sentence}" for sentence in missing)
        raise SystemExit(f"{TRANSLATIONS.relative_to(ROOT)} lacks:\n{lines}")
    return known


def _current(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""
