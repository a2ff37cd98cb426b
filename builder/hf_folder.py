"""A folder with a HuggingFace config.json as a recipe: everything that is needed stands in its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.families import family_of_config
from builder.recipe import NAME_PATTERN, PromptForm, Publisher, Recipe, RecipeFile, Sources, known_recipes
from builder.recipe import find_recipe as find_known_recipe
from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME

CONFIG = "config.json"


def find_recipe(model: str, name: str | None = None) -> RecipeFile:
    """A known recipe, a recipe.yaml, or the recipe of a folder. Raises ``Fault``.

    ``name`` is for a folder whose own name cannot be a model's.
    """
    folder = Path(model)
    if model in known_recipes() or not folder.is_dir():
        return find_known_recipe(model)
    if not (folder / CONFIG).is_file():
        hint = f"give a HuggingFace folder, a recipe.yaml, or one of: {', '.join(known_recipes())}"
        raise Fault(FaultKind.INVALID_CONFIG, f"{folder} is a folder without {CONFIG}", hint)
    return recipe_of_folder(folder, name)


def recipe_of_folder(folder: Path, name: str | None = None) -> RecipeFile:
    """What the folder's config.json says. Raises ``Fault`` for a family there is no network for.

    A packaged version is such a folder too, and so is a snapshot in the hub's cache.
    """
    path = folder / CONFIG
    family = family_of_config(_read(path), str(path))
    own = name or _name_of(folder.resolve())
    if not re.fullmatch(NAME_PATTERN, own):
        hint = "say how the model is to be called: --name NAME"
        raise Fault(FaultKind.INVALID_CONFIG, f"the folder's name {own!r} cannot be a model's name", hint)
    recipe = Recipe(
        name=own,
        title=own,
        family=family.name,
        publisher=Publisher(name="its publisher"),
        sources=Sources(root="recipe", folder="."),
        prompt=PromptForm(chat_template=family.chat_template),
    )
    return RecipeFile(recipe=recipe, folder=folder, from_folder=True)


def classic_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Newer keys of a config.json under the names that every reader knows."""
    classic = {key: value for key, value in config.items() if key != "rope_parameters"}
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping):
        if "rope_theta" in rope:
            classic.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            classic.setdefault("rope_scaling", {key: rope[key] for key in rope if key != "rope_theta"})
    if classic.get("rope_scaling", ...) is None:
        del classic["rope_scaling"]
    return classic


def _name_of(place: Path) -> str:
    """The folder's name; of a packaged version and of a hub's snapshot, the model's."""
    if place.name.isdigit() and (place / MANIFEST_NAME).is_file():
        return place.parent.name
    if place.parent.name == "snapshots" and "--" in place.parent.parent.name:
        return place.parent.parent.name.rpartition("--")[2]
    return place.name


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise Fault(FaultKind.INVALID_MODEL, message, "check its permissions") from None
    except (ValueError, RecursionError) as error:
        message = f"{path} is not valid JSON: {error}"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch the file again") from None
    if not isinstance(config, dict):
        raise Fault(FaultKind.INVALID_MODEL, f"{path} must hold a JSON object", "fetch the file again")
    return config
