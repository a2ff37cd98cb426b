"""Finds and reads finished model directories, for the commands that look at them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.checkpoints.weight_files import Weights, find_weights
from builder.families import FAMILIES
from builder.quantization import parameter_count
from builder.write import Target
from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME, Manifest, read_manifest
from contract.serving import Serving, read_config, read_serving


@dataclass(frozen=True)
class ModelDirectory:
    """One version, read."""

    path: Path
    config: dict[str, Any]
    serving: Serving
    manifest: Manifest
    weights: Weights

    @property
    def parameters(self) -> int:
        """Weights of the model, however they are stored."""
        family = FAMILIES.get(self.serving.family or "")
        if family is None or "quantization_config" not in self.config:
            return self.weights.parameters
        return parameter_count(family, self.config)

    @property
    def model(self) -> str:
        return self.path.resolve().parent.name

    @property
    def version(self) -> str:
        return self.path.resolve().name


def find_version(directory: Path) -> Path:
    """A version's folder: the given one, or the highest version of the given model. Raises ``Fault``."""
    if not directory.exists():
        hint = "check the path; built models are in the repository, see: ls model_repository"
        raise Fault(FaultKind.NOT_FOUND, f"{directory} does not exist", hint)
    if is_version(directory):
        return directory
    versions = Target(directory.parent, directory.name).versions() if directory.is_dir() else []
    if not versions:
        hint = "give a model's folder or one version of it, as in model_repository/NAME/1"
        raise Fault(
            FaultKind.INVALID_MODEL, f"{directory} is not a model directory: it has no config.json", hint
        )
    return directory / str(versions[-1])


def is_version(directory: Path) -> bool:
    """Whether a folder claims to be a packaged version."""
    return any((directory / name).is_file() for name in (MANIFEST_NAME, "config.json"))


def read_directory(directory: Path) -> ModelDirectory:
    """Read a version's folder, or a model's highest version. Raises ``Fault``."""
    path = find_version(directory)
    manifest = read_manifest(path)
    return ModelDirectory(path, read_config(path), read_serving(path), manifest, find_weights(path))
