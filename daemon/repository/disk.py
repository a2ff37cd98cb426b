"""What lies in the repository folders: every version of every model, the broken ones with their fault.

Reads names and small configuration files only; knows nothing of what is loaded. The registry calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.faults import Fault, FaultKind
from contract.serving import Serving, parse_serving, read_config
from daemon.repository.triton_config import backend_of

_VERSION = re.compile(r"[1-9][0-9]*\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, kw_only=True)
class VersionOnDisk:
    """One version's folder. With a ``fault`` it is listed and cannot be loaded."""

    name: str
    version: str
    directory: Path
    backend: str = ""
    serving: Serving | None = None
    """``None`` for models of other backends' making, which have no serving block."""
    fault: Fault | None = None


def scan(repositories: Sequence[Path]) -> list[VersionOnDisk]:
    """Every version found, in order of name and version. Raises ``Fault`` if a repository is missing."""
    folders: dict[str, list[Path]] = {}
    for repository in repositories:
        for folder in _model_folders(repository):
            folders.setdefault(folder.name, []).append(folder)
    found: list[VersionOnDisk] = []
    for name in sorted(folders):
        versions = [version for folder in folders[name] for version in _versions(folder)]
        if len(folders[name]) > 1:
            versions = [_duplicate(version, folders[name]) for version in versions[:1]]
        found.extend(versions)
    return found


def _model_folders(repository: Path) -> list[Path]:
    try:
        entries = sorted(repository.iterdir())
    except OSError as error:
        message = f"repository {repository} cannot be read: {error.strerror}"
        hint = "create it, or name another with --repository FOLDER"
        raise Fault(FaultKind.INVALID_CONFIG, message, hint) from None
    names = {entry.name for entry in entries}
    if names & {"config.pbtxt", "config.json"}:
        is_version = "config.json" in names
        message = (
            f"{repository} is {'one version of a' if is_version else 'a'} model, not a repository of models"
        )
        folder = repository.absolute().parents[1 if is_version else 0]
        raise Fault(FaultKind.INVALID_CONFIG, message, f"name the folder around it: --repository {folder}")
    return [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _versions(folder: Path) -> Iterator[VersionOnDisk]:
    try:
        numbers = sorted(
            int(entry.name) for entry in folder.iterdir() if _VERSION.match(entry.name) and entry.is_dir()
        )
    except OSError as error:
        message = f"{folder} cannot be read: {error.strerror}"
        hint = "let the daemon's user read it, or take it out of the repository"
        yield _broken(folder, "", Fault(FaultKind.INVALID_MODEL, message, hint))
        return
    if not numbers:
        hint = f"put the model into {folder / '1'}, or build it with: builder package"
        yield _broken(folder, "", Fault(FaultKind.INVALID_MODEL, f"{folder} holds no version folder", hint))
    for number in numbers:
        yield _read_version(folder, str(number))


def _read_version(folder: Path, version: str) -> VersionOnDisk:
    directory = folder / version
    if not _NAME.match(folder.name):
        message = f"model name {folder.name!r} holds characters other than letters, digits, '.', '_' and '-'"
        return _broken(folder, version, Fault(FaultKind.INVALID_MODEL, message, "rename the folder"))
    try:
        backend, serving = read_backend_and_serving(directory)
    except Fault as fault:
        return _broken(folder, version, fault)
    return VersionOnDisk(
        name=folder.name, version=version, directory=directory, backend=backend, serving=serving
    )


def adapter_folders(on_disk: VersionOnDisk) -> dict[str, str]:
    """The adapters packaged with a version: name -> absolute folder."""
    packaged = on_disk.serving.adapters if on_disk.serving else {}
    return {name: str(on_disk.directory / folder) for name, folder in packaged.items()}


def read_backend_and_serving(directory: Path) -> tuple[str, Serving | None]:
    """The backend's name, from config.json or else config.pbtxt, and the serving block if there is one."""
    declared = backend_of(directory.parent / "config.pbtxt")
    if declared and not (directory / "config.json").exists():
        return declared, None
    config = read_config(directory)
    block = config.get("serving")
    if block is None:
        if declared and declared != "ms":
            return declared, None
        hint = "package it with: builder package --model FOLDER"
        message = f'{directory / "config.json"} has no block "serving"'
        raise Fault(FaultKind.INVALID_MODEL, message, hint)
    serving = _convert(directory, block, declared)
    return serving.backend, serving


def _convert(directory: Path, block: Any, declared: str) -> Serving:
    if isinstance(block, dict) and "backend" not in block and declared:
        block = {**block, "backend": declared}
    return parse_serving(block, directory)


def _broken(folder: Path, version: str, fault: Fault) -> VersionOnDisk:
    return VersionOnDisk(name=folder.name, version=version, directory=folder / version, fault=fault)


def _duplicate(version: VersionOnDisk, folders: list[Path]) -> VersionOnDisk:
    places = " and ".join(str(folder.parent) for folder in folders)
    message = f"model {version.name!r} is in more than one repository: {places}"
    return replace(version, fault=Fault(FaultKind.INVALID_MODEL, message, "rename or remove one of them"))
