"""The budgets and habits of the code: sizes, names, no asserts, no hidden state, light start-up."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("contract", "builder", "daemon", "client")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_PARAMETERS = 6

ALLOWED: dict[str, str] = {}
"""What may exceed a budget, as ``path`` or ``path:function``, with the reason."""

EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
HEAVY = {"mindspore", "mindformers", "torch", "transformers", "vllm", "ray", "numpy", "grpc", "tritonclient"}
PROGRAMS = ("builder", "daemon", "client")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, Function):
            yield node


def is_command(function: Function) -> bool:
    """A click command: its parameters are its flags."""
    names = {
        inner.attr if isinstance(inner, ast.Attribute) else inner.id
        for decorator in function.decorator_list
        for inner in ast.walk(decorator)
        if isinstance(inner, ast.Attribute | ast.Name)
    }
    return bool(names & {"command", "group", "option", "argument"})


def parameter_count(function: Function) -> int:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in {"self", "cls"}])


def over_budget(found: dict[str, str]) -> list[str]:
    return [f"{place}: {text}" for place, text in found.items() if place not in ALLOWED]


def test_modules_are_short() -> None:
    sizes = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    long = {name: f"{size} lines" for name, size in sizes.items() if size > MAX_MODULE_LINES}
    assert not over_budget(long)


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}:{function.name}": f"{(function.end_lineno or 0) - function.lineno + 1} lines"
        for path in MODULES
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not over_budget(long)


def test_functions_take_few_parameters() -> None:
    many = {
        f"{name_of(path)}:{function.name}": f"{parameter_count(function)} parameters"
        for path in MODULES
        for function in functions(path)
        if parameter_count(function) > MAX_PARAMETERS
        and function.name != "__init__"
        and not is_command(function)
    }
    assert not over_budget(many)


def test_every_allowance_has_a_reason_and_a_place() -> None:
    for place, reason in ALLOWED.items():
        assert reason
        assert (ROOT / place.partition(":")[0]).exists(), place


def test_module_names_say_what_they_hold() -> None:
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        assert not EMPTY_NAMES & set(parts), name_of(path)
        assert path.stem not in sys.stdlib_module_names, f"{name_of(path)} shadows the standard library"


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name_of(path)
        for path in MODULES
        if path.name != "__init__.py"
        and path.read_text("utf-8").strip()
        and not ast.get_docstring(tree_of(path))
    ]
    assert not silent


def test_no_assert_outside_tests() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Assert)
    ]
    assert not found, "raise a Fault instead"


def test_no_mutable_state_at_module_level() -> None:
    """A module-level list, dict or set may only be a constant, and constants are in capitals."""
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    found = []
    for path in MODULES:
        for node in tree_of(path).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, mutable):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found += [
                f"{name_of(path)}: {name}" for name in names if not name.isupper() and name != "__all__"
            ]
    assert not found


def test_no_global_statement() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Global)
    ]
    assert not found


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_starts_light(program: str) -> None:
    code = (
        "import json, sys\n"
        f"sys.argv = ['{program}', '--help']\n"
        f"from {program}.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Usage:")
    summaries = done.stdout.partition("Commands:")[2].splitlines()
    assert not [line for line in summaries if line.endswith("...")], "say a command's purpose in fewer words"
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not HEAVY & loaded


@pytest.mark.parametrize("program", PROGRAMS)
def test_console_scripts_resolve(program: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, attribute = project["scripts"][program].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_dependencies_are_justified() -> None:
    """Every dependency has its sentence."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    runtime = text.partition("\ndependencies = [\n")[2].partition("\n]\n")[0].splitlines()
    assert runtime
    assert [line for line in runtime if "#" not in line] == []
