"""The recipes that come with MindPort, for ``builder list``."""

from __future__ import annotations

from typing import Any

from builder.recipe import find_recipe, known_recipes
from builder.sources import Requested, locate
from contract.faults import Fault


def list_recipes() -> list[dict[str, Any]]:
    """Name, title, family, where the sources belong and whether they are there."""
    entries = []
    for name in known_recipes():
        recipe_file = find_recipe(name)
        try:
            locate(recipe_file, Requested())
            present = True
        except Fault:
            present = False
        recipe = recipe_file.recipe
        entries.append(
            {
                "name": recipe.name,
                "title": recipe.title,
                "family": recipe.family,
                "publisher": recipe.publisher.model_dump(),
                "sources": str(recipe_file.default_sources()),
                "sources_present": present,
            }
        )
    return entries
