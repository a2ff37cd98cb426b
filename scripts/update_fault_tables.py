"""Bring the tables of fault kinds in docs/*/errors.md up to date with the code."""

from __future__ import annotations

import ast
import itertools

from generated import ROOT, between, table, translate, write_or_check

from contract.faults import EXIT_CODES, FaultKind
from daemon.grpc_api.errors import CODES
from daemon.http_api.errors import Family, status_of

FAMILIES = {
    Family.OPENAI: "OpenAI",
    Family.MINDIE: "MindIE",
    Family.TGI: "TGI",
    Family.TRITON: "Triton",
}


def meanings() -> dict[str, str]:
    """Kind to the sentence written under it in contract/faults.py."""
    tree = ast.parse((ROOT / "contract" / "faults.py").read_text("utf-8"))
    kinds = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "FaultKind")
    found: dict[str, str] = {}
    for member, text in itertools.pairwise(kinds.body):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr):
            found[ast.literal_eval(member.value)] = ast.literal_eval(text.value)
    return found


def rows(words: dict[str, str] | None) -> list[list[str]]:
    """The reference table, one kind a row."""
    sentences = meanings()
    found = []
    for kind in FaultKind:
        sentence = sentences[kind.value]
        statuses = [str(status_of(family, kind)) for family in FAMILIES]
        meaning = words[sentence] if words else sentence
        found.append([f"`{kind}`", *statuses, f"`{CODES[kind].name}`", str(EXIT_CODES[kind]), meaning])
    return found


def main() -> int:
    words = translate(list(meanings().values()))
    files = {
        "docs/en/errors.md": table(["kind", *FAMILIES.values(), "gRPC", "exit code", "meaning"], rows(None)),
        "docs/zh/errors.md": table(["类别", *FAMILIES.values(), "gRPC", "退出码", "含义"], rows(words)),
    }
    return write_or_check(__doc__ or "", {name: between(name, text) for name, text in files.items()})


if __name__ == "__main__":
    raise SystemExit(main())
