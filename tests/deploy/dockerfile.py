"""Reads a Dockerfile's instructions: enough for its tests, no more."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

KNOWN = re.compile(
    "ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str


def read(path: Path) -> list[Instruction]:
    """All instructions, continued lines joined. Raises ``ValueError`` for a word that is none."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        if not KNOWN.fullmatch(name):
            raise ValueError(f"{name} is no instruction")
        found.append(Instruction(name, text.strip()))
    return found


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """The instructions of each stage; a stage begins with FROM."""
    found: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.name == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def environment(stage: list[Instruction]) -> dict[str, str]:
    """What ENV sets."""
    pairs = [
        pair for instruction in stage if instruction.name == "ENV" for pair in shlex.split(instruction.text)
    ]
    return dict(pair.split("=", 1) for pair in pairs)


def last(stage: list[Instruction], name: str) -> str:
    """The text of the instruction that counts."""
    return [instruction.text for instruction in stage if instruction.name == name][-1]
