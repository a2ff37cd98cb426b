"""Every fault that a user can cause says what to do about it: in a hint, or in the sentence as a rule."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from contract.faults import FaultKind
from tests.test_structure import MODULES, ROOT, Function, functions, name_of

CAUSED_BY_USERS = {
    "ALREADY_EXISTS",
    "CONTEXT_OVERFLOW",
    "FORBIDDEN",
    "INVALID_CONFIG",
    "INVALID_MODEL",
    "INVALID_REQUEST",
    "NOT_FOUND",
    "OUT_OF_MEMORY",
    "TOO_LARGE",
    "UNAUTHENTICATED",
    "UNSUPPORTED",
    "UNTRUSTED_CODE",
    "VERIFICATION_FAILED",
}
IS_A_RULE = re.compile(r"\b(must|needs|may hold|is required|known options)\b|\bwrite: ")
"""A sentence with one of these says itself what would be right."""

ALLOWED: dict[str, str] = {
    "daemon/backends/worker.py": "what only the author of a backend meets",
    "daemon/http_api/dialects/openai/completions.py": "its callers give the rule",
    "daemon/kserve/chat.py": "its callers give the rule",
    "daemon/kserve/fields.py": "pydantic's sentences are rules",
}


def is_loading(place: str, kind: str) -> bool:
    """Of a model that cannot be loaded: the repository adds what to do."""
    return kind == "INVALID_MODEL" and place.startswith(("daemon/backends/", "daemon/service/text_model.py"))


def kind_of(call: ast.Call) -> str:
    kind = call.args[0] if call.args else None
    return kind.attr if isinstance(kind, ast.Attribute) else ""


def has_hint(call: ast.Call) -> bool:
    hint = call.args[2] if len(call.args) > 2 else None
    given = any(keyword.arg == "hint" for keyword in call.keywords)
    return given or (hint is not None and not (isinstance(hint, ast.Constant) and hint.value == ""))


def sentence_of(call: ast.Call, function: Function) -> str:
    """The source of the message, looked up where a variable holds it."""
    message = call.args[1] if len(call.args) > 1 else ast.Constant("")
    if isinstance(message, ast.Name):
        return " ".join(
            ast.unparse(node.value)
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == message.id for target in node.targets)
        )
    return ast.unparse(message)


def without_remedy() -> Iterator[str]:
    for path in MODULES:
        place = name_of(path)
        for function in functions(path):
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or ast.unparse(node.func) != "Fault" or has_hint(node):
                    continue
                kind, sentence = kind_of(node), sentence_of(node, function)
                is_exempt = place in ALLOWED or is_loading(place, kind) or IS_A_RULE.search(sentence)
                if kind in CAUSED_BY_USERS and not is_exempt:
                    yield f"{place}:{node.lineno}: {sentence}"


def test_kinds_are_known() -> None:
    assert set(FaultKind.__members__) >= CAUSED_BY_USERS


def test_faults_of_users_have_remedies() -> None:
    assert sorted(set(without_remedy())) == [], "say what to do, as Fault's third argument"


def test_allowances_are_needed() -> None:
    assert all((ROOT / place).exists() and reason for place, reason in ALLOWED.items())
