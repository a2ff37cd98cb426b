"""Every model that the builder knows has layouts that know all of its tensors."""

from __future__ import annotations

import pytest

from builder.checkpoints.layouts.families import HF, LAYOUTS
from builder.conversion.subject import facts_of
from builder.families import FAMILIES
from builder.recipe import find_recipe, known_recipes

RECIPES = {name: find_recipe(name).recipe for name in known_recipes()}
SIZED = sorted(name for name, recipe in RECIPES.items() if recipe.architecture)


def test_every_family_has_layouts() -> None:
    assert FAMILIES.keys() <= LAYOUTS.keys()
    assert all(layouts.hf.name == HF for layouts in LAYOUTS.values())


@pytest.mark.parametrize("name", SIZED)
def test_every_tensor_of_a_known_model_has_its_place(name: str) -> None:
    recipe = RECIPES[name]
    family, values = FAMILIES[recipe.family], recipe.architecture
    names = [tensor for tensor, _ in family.expected_tensors(values)]
    assert LAYOUTS[family.name].hf.unknown(names) == []
    heads, kv_heads, width = facts_of(family, values).attention()
    assert heads % kv_heads == 0
    assert width == 64 if name == "fm9g_4b" else width == 128
