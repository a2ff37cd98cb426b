"""The documents: both languages alike, links that lead somewhere, commands word for word, nothing private."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *ROOT.glob("examples/*/*.md"),
    ]
)
PAIRS = [
    (path, path.with_suffix("").with_suffix(".md")) for path in DOCUMENTS if path.name.endswith(".zh.md")
]
PAIRS += [(path, ROOT / "docs" / "en" / path.name) for path in sorted((ROOT / "docs" / "zh").glob("*.md"))]

FENCE = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PRIVATE = re.compile(r"/home/(?!mindport)\w|/root/|\bissue #\d", re.IGNORECASE)
"""A path of one machine, or a number that means nothing to a reader."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text("utf-8"))


def heading_levels(path: Path) -> list[int]:
    return [len(match[1]) for match in re.finditer(r"^(#+) ", prose(path), re.MULTILINE)]


def fences(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def links(path: Path) -> Iterator[str]:
    for target in LINK.findall(prose(path)):
        if "://" not in target and not target.startswith("mailto:"):
            yield target.partition("#")[0]


def text_files() -> Iterator[tuple[Path, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        try:
            yield path, path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def test_both_languages_have_the_same_pages() -> None:
    english = {path.name for path in (ROOT / "docs" / "en").glob("*.md")}
    assert english == {path.name for path in (ROOT / "docs" / "zh").glob("*.md")}
    assert {"api.md", "errors.md", "model-directory.md", "settings.md"} <= english
    assert (ROOT / "README.zh.md").exists()
    assert (ROOT / "deploy" / "README.zh.md").exists()


@pytest.mark.parametrize(("chinese", "english"), PAIRS, ids=[name_of(pair[0]) for pair in PAIRS])
def test_both_languages_have_the_same_structure(chinese: Path, english: Path) -> None:
    assert heading_levels(chinese) == heading_levels(english)
    assert len(FENCE.findall(chinese.read_text("utf-8"))) == len(FENCE.findall(english.read_text("utf-8")))


@pytest.mark.parametrize(("chinese", "english"), PAIRS, ids=[name_of(pair[0]) for pair in PAIRS])
def test_both_languages_show_the_same_commands(chinese: Path, english: Path) -> None:
    for language in ("bash", "python", "json"):
        assert fences(chinese, language) == fences(english, language)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_quotes_the_two_commands(name: str) -> None:
    assert "bash scripts/demo\nbash scripts/test\n" in fences(ROOT / name, "bash")
    assert (ROOT / "scripts" / "demo").exists()
    assert (ROOT / "scripts" / "test").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    broken = [target for target in links(path) if target and not (path.parent / target).exists()]
    assert not broken


def test_places_named_by_the_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    places = [
        place
        for line in re.findall(r"^Code: (.*)$", text, re.MULTILINE)
        for place in re.findall(r"`([^`]+)`", line)
    ]
    assert places
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_every_architecture_section_points_to_code() -> None:
    sections = re.split(r"^## ", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    for section in sections:
        last = section.strip().splitlines()[-1]
        assert last.startswith("Code: "), section.splitlines()[0]


def test_nothing_private_is_mentioned() -> None:
    found = [
        f"{name_of(path)}: {match[0]}"
        for path, text in text_files()
        if path != Path(__file__).resolve() and (match := PRIVATE.search(text))
    ]
    assert not found


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("name", ["install", "demo", "test", "check", "fix"])
def test_scripts_parse_and_say_what_they_do(name: str) -> None:
    path = ROOT / "scripts" / name
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    first, second = path.read_text("utf-8").splitlines()[:2]
    assert first == "#!/usr/bin/env bash"
    assert second.startswith("# ")
