"""Finds a checkpoint's safetensors files and checks them against each other and against the architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.checkpoints.safetensors_header import Header, HeaderError, TensorEntry, read_header
from builder.checkpoints.writers.streams import NamedView
from builder.families.base import Family
from builder.quantization import expected_tensors
from contract.faults import Problem

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_SHOWN = 12


@dataclass(frozen=True)
class WeightFile:
    path: Path
    name: str
    """In the model directory."""
    header: Header
    assembly: tuple[NamedView, ...] | None = None
    """The tensors of a file that exists nowhere yet: ``path`` is what they are taken from."""


@dataclass(frozen=True)
class Weights:
    files: tuple[WeightFile, ...]
    problems: tuple[Problem, ...]
    note: str = ""
    """What they are made of, when that is not what they look like."""

    @property
    def tensors(self) -> dict[str, TensorEntry]:
        return {tensor.name: tensor for file in self.files for tensor in file.header.tensors}

    @property
    def dtypes(self) -> dict[str, int]:
        """Bytes of tensors by dtype, most first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.start
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors.values())


def find_weights(path: Path) -> Weights:
    """The safetensors files of a folder, or one file; problems instead of exceptions."""
    if path.is_file():
        return _read([path], single=True)
    index = path / INDEX_NAME
    if index.exists():
        return _read_indexed(index)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    files = [file for file in files if not file.name.startswith(("adapter_", "consolidated"))]
    if not files:
        return Weights((), (_nothing_found(path),))
    shards = {file: match for file in files if (match := _SHARD.fullmatch(file.name))}
    if not shards:
        if len(files) > 1 and path / SINGLE_NAME in files:
            files = [path / SINGLE_NAME]
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            remedy = "name one with --weights, or keep one set of shards"
            return Weights((), (Problem(str(path), f"holds several checkpoints: {names}", remedy),))
        return _read(files, single=True)
    if path / SINGLE_NAME in files:
        remedy = f"remove one of them, or name it with --weights {path / SINGLE_NAME}"
        return Weights((), (Problem(str(path), f"holds {SINGLE_NAME} and shards", remedy),))
    return _read_shards(path, shards)


def check_tensors(weights: Weights, family: Family, config: Mapping[str, Any]) -> list[Problem]:
    """Every tensor that is missing, surplus or of the wrong shape. Raises ``Fault``."""
    return check_shapes(weights.tensors, family, config)


def check_shapes(
    found: Mapping[str, TensorEntry], family: Family, config: Mapping[str, Any]
) -> list[Problem]:
    """Every tensor that is missing, surplus or of the wrong shape. Raises ``Fault``."""
    expected = dict(expected_tensors(family, config))
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected and not family.is_ignored(name)]
    surplus = [name for name in surplus if not family.is_redundant(name, config)]
    problems = []
    if missing:
        remedy = (
            f"the checkpoint does not fit {family.layers} {config[family.layers]}, or a shard is not there"
        )
        problems.append(Problem("weights", f"{len(missing)} tensors are missing: {_listed(missing)}", remedy))
    if surplus:
        remedy = f"check {family.layers} and that the checkpoint is a {family.name} model"
        problems.append(
            Problem("weights", f"{len(surplus)} tensors are not expected: {_listed(surplus)}", remedy)
        )
    wrong = [(name, found[name].shape, shape) for name, shape in expected.items() if name in found]
    wrong = [(name, has, needs) for name, has, needs in wrong if has != needs]
    for name, has, needs in wrong[:_SHOWN]:
        remedy = "correct the sizes in the yaml or config.json, or the checkpoint"
        problems.append(
            Problem(f"weights  {name}", f"has shape {list(has)}, the config says {list(needs)}", remedy)
        )
    if len(wrong) > _SHOWN:
        problems.append(Problem("weights", f"{len(wrong) - _SHOWN} more tensors have the wrong shape"))
    return problems


def _nothing_found(path: Path) -> Problem:
    if not path.exists():
        return Problem(str(path), "does not exist", "check --weights")
    return Problem(str(path), "holds no *.safetensors", "put the publisher's weights there or use --weights")


def _read(files: Iterable[Path], single: bool = False) -> Weights:
    found, problems = [], []
    for path in files:
        try:
            header = read_header(path)
        except HeaderError as error:
            problems.extend(error.problems)
        else:
            found.append(WeightFile(path, SINGLE_NAME if single else path.name, header))
    problems.extend(_repeated(found))
    return Weights(tuple(found), tuple(problems))


def _read_shards(folder: Path, shards: Mapping[Path, re.Match[str]]) -> Weights:
    series = {(match["stem"], match["count"]) for match in shards.values()}
    if len(series) > 1:
        names = ", ".join(f"{stem} of {int(count)}" for stem, count in sorted(series))
        return Weights(
            (), (Problem(str(folder), f"holds several sets of shards: {names}", "keep one of them"),)
        )
    stem, count = series.pop()
    wanted = [f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
    return _read_named(folder, wanted)


def _read_named(folder: Path, names: list[str]) -> Weights:
    missing = [name for name in names if not (folder / name).is_file()]
    weights = _read(folder / name for name in names if name not in missing)
    problems = [
        Problem(str(folder / name), "shard is missing", "fetch it from the publisher") for name in missing
    ]
    return Weights(weights.files, (*problems, *weights.problems))


def _read_indexed(index: Path) -> Weights:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
        plain = all(isinstance(name, str) and Path(name).name == name for name in names)
    except OSError as error:
        return Weights(
            (), (Problem(str(index), f"cannot be read: {error.strerror}", "check its permissions"),)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Weights((), (Problem(str(index), "is not a weight index", "fetch the file again"),))
    if not plain or not names:
        return Weights((), (Problem(str(index), "names files outside its folder", "fetch the file again"),))
    weights = _read_named(index.parent, names)
    if weights.problems:
        return weights
    places = {tensor.name: file.name for file in weights.files for tensor in file.header.tensors}
    strayed = [name for name, place in weight_map.items() if places.get(name) != place]
    if strayed:
        message = f"{len(strayed)} tensors are not in the file it names: {_listed(strayed)}"
        return Weights(
            weights.files, (Problem(str(index), message, "fetch index and shards again, together"),)
        )
    return weights


def _repeated(files: list[WeightFile]) -> list[Problem]:
    first: dict[str, str] = {}
    problems = []
    for file in files:
        for tensor in file.header.tensors:
            if tensor.name in first:
                message = f"is also in {first[tensor.name]}"
                problems.append(
                    Problem(f"{file.path.name}  {tensor.name}", message, "keep one set of shards")
                )
            first.setdefault(tensor.name, file.path.name)
    return problems[:_SHOWN]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
