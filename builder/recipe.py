"""A recipe: everything the builder knows about a model before it sees a file of it.

Known recipes lie in ``builder/recipes``; a user's own is the same yaml anywhere. The schema is closed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from builder.nearest import did_you_mean, nearest
from builder.yaml_document import YamlDocument, read_yaml
from contract.faults import Fault, FaultKind, Problem, fault_of_problems

RECIPES_FOLDER = Path(__file__).parent / "recipes"
TEMPLATES_FOLDER = Path(__file__).parent / "templates"
SOURCE_TREE = Path(__file__).parent.parent
WEIGHTS_VARIABLE = "MINDPORT_WEIGHTS"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Publisher(_Closed):
    name: str
    urls: list[str] = []
    license: str | None = None


class Sources(_Closed):
    """Where the inputs lie unless the user says otherwise."""

    root: Literal["weights", "source_tree", "recipe"]
    """``weights``: the folder MINDPORT_WEIGHTS (default ``weights``); ``recipe``: beside this file."""
    folder: str
    files: list[str] = []
    """What belongs there, for the message when it is missing."""


class PromptForm(_Closed):
    chat_template: str | None = None
    """File in builder/templates, used when the publisher's files bring none."""


class RecipeLimits(_Closed):
    max_seq_len: int | None = Field(default=None, ge=2)
    max_input_tokens: int | None = Field(default=None, ge=1)


class Recipe(_Closed):
    name: str = Field(pattern=NAME_PATTERN)
    title: str
    description: str = ""
    family: str
    publisher: Publisher
    sources: Sources
    network: str | None = None
    """File of the ``ms`` backend's network; by default the family's."""
    yaml_template: str | None = None
    """File in builder/templates: the mindformers yaml when the user brings none; by default the family's."""
    architecture: dict[str, Any] = {}
    """HuggingFace names and values; the weakest of the three sources."""
    generation: dict[str, Any] = {}
    prompt: PromptForm = PromptForm()
    limits: RecipeLimits = RecipeLimits()
    adapters: dict[str, str] = {}
    """LoRA adapters to serve beside the weights: name -> folder or file, as seen from the recipe's folder."""
    card: list[str] = []
    """Further sentences for the model's README."""


class RecipeFile(BaseModel):
    """A recipe and the folder its relative paths start from."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    folder: Path
    from_folder: bool = False
    """Made from a HuggingFace folder, whose own files are all that is known of the model."""

    def default_sources(self) -> Path:
        """The folder in which the inputs are looked for unless the user names another."""
        sources = self.recipe.sources
        roots = {
            "weights": Path(os.environ.get(WEIGHTS_VARIABLE) or "weights"),
            "source_tree": SOURCE_TREE,
            "recipe": self.folder,
        }
        return roots[sources.root] / sources.folder


def known_recipes() -> list[str]:
    """Names of the recipes that come with MindPort."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))


def find_recipe(name: str) -> RecipeFile:
    """A known recipe by name, or any recipe by its path. Raises ``Fault``."""
    if name in known_recipes():
        path = RECIPES_FOLDER / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
    else:
        guess = nearest(name, known_recipes())
        meant = f"did you mean {guess}? " if guess else ""
        hint = f"{meant}known: {', '.join(known_recipes())}; or give the path of a recipe.yaml"
        raise Fault(FaultKind.NOT_FOUND, f"there is no recipe {name!r}", hint)
    if path.is_dir():
        raise Fault(FaultKind.INVALID_CONFIG, f"{path} is a folder", "give the path of a recipe.yaml")
    return RecipeFile(recipe=load_recipe(path), folder=path.parent)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ``Fault`` with every problem, each with its line."""
    document = read_yaml(path, FaultKind.INVALID_CONFIG)
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        problems = [_problem(document, dict(found)) for found in error.errors()]
        raise fault_of_problems(FaultKind.INVALID_CONFIG, path.name, problems) from None


def _problem(document: YamlDocument, error: dict[str, Any]) -> Problem:
    path = tuple(error["loc"])
    where = document.where(path)
    if error["type"] == "extra_forbidden":
        return Problem(where, "unknown key", did_you_mean(str(path[-1]), _keys_beside(path)))
    if error["type"] == "missing":
        return Problem(where, "is missing", f"add {path[-1]}:")
    return Problem(where, f"{error['msg']}, found {error['input']!r}")


def _keys_beside(path: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for key in path[:-1]:
        field = model.model_fields.get(str(key))
        annotation = field.annotation if field is not None else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
