"""Finds the input files of a model: where the user says, or where the recipe expects them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from builder.recipe import RecipeFile
from contract.faults import Fault, FaultKind, Problem, fault_of_problems

_TOKENIZER_NAMES = ("tokenizer.model", "tokenizer.json")
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.ckpt", "*.pth", "*.pt", "rank_*")


@dataclass(frozen=True)
class Requested:
    """What the command line says about the inputs; ``None`` means: as the recipe expects."""

    weights: Path | None = None
    tokenizer: Path | None = None
    yaml: Path | None = None
    adapter: Path | None = None
    """To merge."""
    with_adapters: Mapping[str, Path] = field(default_factory=dict)
    """To serve beside the weights, by name; they take the place of the recipe's of that name."""
    adapter_alpha: float | None = None
    """Of adapters that do not say theirs."""


@dataclass(frozen=True)
class Locations:
    weights: Path
    """Folder or file."""
    tokenizer: Path
    """``tokenizer.model`` or ``tokenizer.json``."""
    yaml: Path | None
    folders: tuple[Path, ...]
    """Where config.json and its like are looked for, strongest first."""

    def find(self, name: str) -> Path | None:
        """The first file of this name beside the weights."""
        return _first(self.folders, name)

    def find_beside_tokenizer(self, name: str) -> Path | None:
        """The first file of this name beside the tokenizer, else beside the weights."""
        return _first((self.tokenizer.parent, *self.folders), name)


def locate(recipe_file: RecipeFile, requested: Requested) -> Locations:
    """Find every input. Raises ``Fault`` that says what to put where, or what is ambiguous."""
    for flag, path in (
        ("weights", requested.weights),
        ("tokenizer", requested.tokenizer),
        ("yaml", requested.yaml),
        ("adapter", requested.adapter),
        *(("with-adapter", path) for path in requested.with_adapters.values()),
    ):
        if path is not None and not path.exists():
            raise Fault(FaultKind.NOT_FOUND, f"{path} does not exist", f"check --{flag}")
    default = recipe_file.default_sources()
    weights = requested.weights or default
    if not _has_weights(weights):
        raise _not_there(recipe_file, weights)
    folders = tuple(dict.fromkeys(_folders((weights, default))))
    tokenizer = _tokenizer(recipe_file, requested, folders)
    pattern = "predict_*" if recipe_file.from_folder else "*"
    return Locations(weights, tokenizer, requested.yaml or _yaml(folders, pattern), folders)


def _first(folders: Iterable[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _folders(paths: Iterable[Path | None]) -> Iterable[Path]:
    for path in paths:
        if path is not None and path.exists():
            yield path if path.is_dir() else path.parent


def _has_weights(path: Path) -> bool:
    return path.is_file() or any(True for pattern in _WEIGHT_PATTERNS for _ in path.glob(pattern))


def _tokenizer(recipe_file: RecipeFile, requested: Requested, folders: tuple[Path, ...]) -> Path:
    if requested.tokenizer is not None and requested.tokenizer.is_file():
        return requested.tokenizer
    places = (requested.tokenizer,) if requested.tokenizer is not None else folders
    for folder in places:
        for name in _TOKENIZER_NAMES:
            if (folder / name).is_file():
                return folder / name
    message = f"no tokenizer.model or tokenizer.json in {', '.join(map(str, places))}"
    hint = f"name it with --tokenizer FILE{_offered(recipe_file)}"
    raise Fault(FaultKind.NOT_FOUND, message, hint)


def _yaml(folders: tuple[Path, ...], pattern: str) -> Path | None:
    for folder in folders:
        found = sorted(path for path in folder.glob(pattern) if path.suffix in (".yaml", ".yml"))
        found = [path for path in found if not _is_recipe(path)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            problem = Problem(
                str(folder), f"holds {len(found)} yaml files: {names}", "name one with --yaml FILE"
            )
            raise fault_of_problems(FaultKind.INVALID_CONFIG, "the inputs", [problem])
        if found:
            return found[0]
    return None


def _is_recipe(path: Path) -> bool:
    """Recipes may lie beside the weights; a mindformers yaml has no ``family``."""
    return path.is_file() and re.search(rb"^family:", path.read_bytes(), re.MULTILINE) is not None


def _not_there(recipe_file: RecipeFile, folder: Path) -> Fault:
    recipe = recipe_file.recipe
    state = "has no weights" if folder.exists() else "does not exist"
    lines = [f"the sources of {recipe.name} are not there: {folder} {state}"]
    if recipe.sources.files:
        lines.append(f"  put into {folder}:")
        lines.extend(f"    {name}" for name in recipe.sources.files)
    if recipe.publisher.urls:
        lines.append(f"  {recipe.publisher.name} offers them at:")
        lines.extend(f"    {url}" for url in recipe.publisher.urls)
    details = {"folder": str(folder), "files": recipe.sources.files, "urls": recipe.publisher.urls}
    hint = "or say where they are: --weights FOLDER --tokenizer FILE"
    return Fault(FaultKind.NOT_FOUND, "\n".join(lines), hint, details)


def _offered(recipe_file: RecipeFile) -> str:
    urls = recipe_file.recipe.publisher.urls
    return f"; {recipe_file.recipe.publisher.name} offers it at {urls[0]}" if urls else ""
