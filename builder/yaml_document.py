"""YAML with line numbers: every complaint about a key can say where the key stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.faults import Fault, FaultKind, Problem, fault_of_problems

if TYPE_CHECKING:
    import yaml

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlDocument:
    """A mapping read from a file, and the line on which each key stands."""

    name: str
    """The file's name, as messages show it."""
    data: dict[str, Any]
    lines: dict[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """``file:line  dotted.key`` of a key; the nearest parent's line when the key itself is absent."""
        dotted = ".".join(str(part) for part in path)
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.name}:{line}  {dotted}"
        return f"{self.name}  {dotted}" if dotted else self.name

    def mapping_at(self, *path: str) -> dict[str, Any]:
        """The mapping under these keys; empty when there is none."""
        found: Any = self.data
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}


def read_yaml(path: Path, kind: FaultKind) -> YamlDocument:
    """Read a file that holds one mapping. Raises ``Fault`` of ``kind`` with the line of the mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Fault(FaultKind.NOT_FOUND, f"{path} does not exist", "check the path") from None
    except UnicodeDecodeError:
        raise Fault(kind, f"{path} is not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        hint = "check its permissions" if isinstance(error, PermissionError) else ""
        raise Fault(kind, f"{path} cannot be read: {error.strerror}", hint) from None
    return parse_yaml(text, path.name, kind)


def parse_yaml(text: str, name: str, kind: FaultKind) -> YamlDocument:
    """Parse one mapping. Raises ``Fault`` of ``kind`` with the line of the mistake."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise Fault(kind, f"{name}:{line} is not valid YAML: {error.problem}", "correct the line") from None
    except yaml.YAMLError as error:
        raise Fault(kind, f"{name} is not valid YAML: {error}", "write it as UTF-8 text") from None
    if not isinstance(data, dict) or node is None:
        raise Fault(
            kind, f"{name} must hold a mapping of keys to values", "see an example in builder/recipes/"
        )
    lines: dict[KeyPath, int] = {}
    twice: list[Problem] = []
    for path, line in _key_lines(node, ()):
        if path in lines:
            problem = f"the key stands here and on line {lines[path]}"
            twice.append(Problem(f"{name}:{line}  {'.'.join(map(str, path))}", problem, "keep one of them"))
        lines.setdefault(path, line)
    if twice:
        raise fault_of_problems(kind, name, twice)
    return YamlDocument(name, data, lines)


def _key_lines(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "<<":
                continue
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _key_lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _key_lines(item, (*path, index))
