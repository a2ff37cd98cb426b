"""Recipes: closed, with lines; the known ones are sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.families import family_named
from builder.quantization import parameter_count
from builder.recipe import TEMPLATES_FOLDER, find_recipe, known_recipes, load_recipe
from contract.faults import Fault, FaultKind
from contract.networks import shipped_network

SOUND = """\
name: x
title: X
family: telechat
publisher: {name: P}
sources: {root: recipe, folder: s}
network: telechat2.py
yaml_template: mindformers_telechat.yaml
"""


def fault_of(tmp_path: Path, text: str) -> Fault:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(Fault) as caught:
        load_recipe(path)
    return caught.value


def test_sound(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SOUND)
    assert load_recipe(path).family == "telechat"
    found = find_recipe(str(path))
    assert found.default_sources() == tmp_path / "s"


@pytest.mark.parametrize("name", known_recipes())
def test_the_known_recipes(name: str) -> None:
    recipe = find_recipe(name).recipe
    assert recipe.name == name
    family = family_named(recipe.family)
    assert (TEMPLATES_FOLDER / (recipe.yaml_template or family.yaml_template)).is_file()
    assert recipe.prompt.chat_template is None or (TEMPLATES_FOLDER / recipe.prompt.chat_template).is_file()
    network = recipe.network or family.network
    assert shipped_network(network)[1].name == network
    known = {rule.hf for rule in family.fields}
    assert set(recipe.architecture) <= known


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("telechat2_7b", 7_617_351_680),
        ("telechat2_35b", 35_435_059_200),
        ("telechat2_115b", 113_282_916_352),
        ("telechat2_39b_a12b", 39_330_099_200),
        ("chatglm2_6b", 6_243_584_000),
        ("llama2_13b", 13_015_864_320),
        ("baichuan2_13b_chat", 13_896_668_160),
        ("internlm2_5_7b_chat", 7_737_708_544),
        ("fm9g_4b", 4_129_681_920),
        ("qwen1_5_7b", 7_721_324_544),
    ],
)
def test_a_recipe_has_as_many_parameters_as_its_model(name: str, parameters: int) -> None:
    recipe = find_recipe(name).recipe
    assert parameter_count(family_named(recipe.family), recipe.architecture) == parameters


def test_the_size_of_telechat2_7b() -> None:
    recipe = find_recipe("telechat2_7b").recipe
    shapes = dict(family_named("telechat").expected_tensors(recipe.architecture))
    assert len(shapes) == 30 * 10 + 3
    assert shapes["transformer.h.29.self_attention.key_value.weight"] == (8192, 4096)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (SOUND + "titel: Y\n", ["r.yaml:8  titel: unknown key — did you mean title?"]),
        (
            SOUND + "limits:\n  max_seq_lenght: 5\n",
            ["r.yaml:9  limits.max_seq_lenght: unknown key — did you mean max_seq_len?"],
        ),
        (SOUND + "qwertz: Y\n", ["unknown key — remove it"]),
        (SOUND.replace("title: X\n", ""), ["title: is missing — add title:"]),
        (SOUND.replace("title: X", "title: 3"), ["r.yaml:2  title", "found 3"]),
        (SOUND.replace("name: x", "name: ../x"), ["r.yaml:1  name"]),
        (
            SOUND + "titel: Y\nlimits: {max_seq_len: 1}\n",
            ["2 problems in r.yaml", "titel", "limits.max_seq_len"],
        ),
        (SOUND + "title: Y\n", ["r.yaml:8  title: the key stands here and on line 2"]),
        ("a: [", ["r.yaml:1 is not valid YAML"]),
        ("- 1", ["must hold a mapping"]),
    ],
)
def test_every_problem_with_its_line(tmp_path: Path, text: str, sentences: list[str]) -> None:
    fault = fault_of(tmp_path, text)
    assert fault.kind is FaultKind.INVALID_CONFIG
    for sentence in sentences:
        assert sentence in fault.message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Fault, match="is not UTF-8"):
        load_recipe(path)


def test_an_unknown_family() -> None:
    with pytest.raises(Fault, match="no family 'telchat'") as caught:
        family_named("telchat")
    assert "did you mean telechat?" in caught.value.hint


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "x.yaml"
    folder.mkdir()
    with pytest.raises(Fault, match="is a folder"):
        find_recipe(str(folder))
