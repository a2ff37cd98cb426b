"""Finds the files of a checkpoint and joins their tables: one file, shards, or a folder a rank."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.checkpoints.layouts.detect import listed
from builder.checkpoints.readers.formats import FETCH_AGAIN, TensorFile, read_tensor_file
from builder.checkpoints.views import View
from contract.faults import Fault, FaultKind

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "param_name_map.json")
_PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt")
_NO_WEIGHTS = re.compile(r"(adapter_|training_args|optimizer|scheduler|rng_state|\.).*")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_META = re.compile(r"consolidated\.(\d{2,})\.pth")
_RANK = re.compile(r"rank_(\d{1,6})")


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was found, none of its tensors read."""

    path: Path
    ranks: tuple[Mapping[str, View], ...]
    """The tensors of every rank; of one where it is not split."""
    files: tuple[Path, ...]
    form: str
    """In words: what it is."""
    meta: bool = False
    """Split as Meta splits."""

    @property
    def tensors(self) -> Mapping[str, View]:
        return self.ranks[0]


def find_source(path: Path) -> Source:
    """A checkpoint of any known form. Raises ``Fault``."""
    if path.is_file():
        file = read_tensor_file(path)
        return Source(path, (file.tensors,), (path,), file.format)
    if not path.is_dir():
        raise Fault(FaultKind.NOT_FOUND, f"{path} does not exist", "check the path of the checkpoint")
    ranks = _numbered(path.iterdir(), _RANK)
    if ranks:
        folders = [_last_checkpoint(folder) for folder in _complete(path, ranks, "rank folders")]
        read = tuple(file for _, of_rank in folders for file in of_rank)
        return Source(path, tuple(tensors for tensors, _ in folders), read, f"{len(ranks)} rank folders")
    parts = _numbered(path.iterdir(), _META)
    if parts:
        found = [read_tensor_file(part) for part in _complete(path, parts, "consolidated files")]
        tables = tuple(part.tensors for part in found)
        return Source(path, tables, tuple(part.path for part in found), f"{len(found)} Meta files", meta=True)
    files = _files(path)
    found = [read_tensor_file(file) for file in files]
    tensors = _joined(found)
    _check_index(path, found)
    form = found[0].format if len(found) == 1 else f"{len(found)} {found[0].format} files"
    return Source(path, (tensors,), tuple(files), form)


def has_foreign_weights(path: Path) -> bool:
    """Whether this is a checkpoint in another form than HuggingFace's safetensors."""
    if path.is_file():
        return path.suffix != ".safetensors"
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return False
    names = [child.name for child in path.iterdir() if not _NO_WEIGHTS.fullmatch(child.name)]
    return any(_RANK.fullmatch(name) or Path(name).match(pattern) for name in names for pattern in _PATTERNS)


def _numbered(paths: Iterable[Path], expression: re.Pattern[str]) -> dict[int, Path]:
    matches = ((expression.fullmatch(path.name), path) for path in paths)
    return {int(match[1]): path for match, path in matches if match}


def _complete(path: Path, parts: Mapping[int, Path], what: str) -> list[Path]:
    missing = [number for number in range(max(parts) + 1) if number not in parts]
    if missing:
        numbers = ", ".join(map(str, missing[:8]))
        message = f"{path} lacks {len(missing)} of its {what}: {numbers}"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch the whole checkpoint again")
    return [parts[number] for number in sorted(parts)]


def _last_checkpoint(folder: Path) -> tuple[Mapping[str, View], list[Path]]:
    """Of several checkpoints in a rank folder the last counts, as it does for MindSpore."""
    files = sorted(path for pattern in ("*.ckpt", "*.safetensors") for path in folder.glob(pattern))
    if not files:
        raise Fault(FaultKind.INVALID_MODEL, f"{folder} holds no checkpoint", "fetch the folder again")
    if any(_SHARD.fullmatch(file.name) for file in files):
        files = _files(folder)
        return _joined([read_tensor_file(file) for file in files]), files
    return read_tensor_file(files[-1]).tensors, files[-1:]


def _files(folder: Path) -> list[Path]:
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is not None:
        return _present(folder, sorted(set(_read_index(index).values())))
    for pattern in _PATTERNS:
        found = sorted(path for path in folder.glob(pattern) if not _NO_WEIGHTS.fullmatch(path.name))
        shards = {(match["stem"], match["count"]) for path in found if (match := _SHARD.fullmatch(path.name))}
        if len(shards) == 1:
            stem, count = shards.pop()
            suffix = pattern[1:]
            return _present(
                folder, [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
            )
        if len(found) > 1 or shards:
            names = listed([path.name for path in found])
            message = f"{folder} holds several checkpoints: {names}"
            raise Fault(FaultKind.INVALID_MODEL, message, "name the one that is meant, with its folder")
        if found:
            return found
    message = f"{folder} holds no weights: no *.safetensors, *.bin, *.pth, *.pt, *.ckpt or rank_0"
    raise Fault(FaultKind.NOT_FOUND, message, "check the path of the checkpoint")


def _present(folder: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        message = f"{folder} lacks {len(missing)} of {len(names)} shards: {listed(missing)}"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch them from the publisher")
    return [folder / name for name in names]


def _read_index(path: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(path.read_bytes())
        table = content.get("weight_map", content)
        fine = bool(table) and all(
            isinstance(name, str) and isinstance(file, str) and file and Path(file).name == file
            for name, file in table.items()
        )
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise Fault(FaultKind.INVALID_MODEL, message, "check its permissions") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise Fault(FaultKind.INVALID_MODEL, f"{path} is not a weight index", FETCH_AGAIN)
    return dict(table)


def _check_index(folder: Path, files: list[TensorFile]) -> None:
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is None:
        return
    places = {name: file.path.name for file in files for name in file.tensors}
    strayed = [name for name, place in _read_index(index).items() if places.get(name) != place]
    if strayed:
        message = f"{len(strayed)} tensors are not in the file that {index} names: {listed(strayed)}"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch index and shards again, together")


def _joined(files: list[TensorFile]) -> dict[str, View]:
    first: dict[str, Path] = {}
    for file in files:
        for name in file.tensors:
            if name in first:
                message = f"{file.path} holds {name}, which is also in {first[name].name}"
                raise Fault(FaultKind.INVALID_MODEL, message, "keep one set of shards")
            first[name] = file.path
    return {name: view for file in files for name, view in file.tensors.items()}
