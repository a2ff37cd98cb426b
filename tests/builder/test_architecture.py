"""Which source wins, and what is reported."""

from __future__ import annotations

from typing import Any

import pytest

from builder.architecture import Source, checked_value, merge, same_value
from builder.families import FAMILIES
from tests.builder.conftest import CONFIG

TELECHAT = FAMILIES["telechat"]
SIZES = {key: value for key, value in CONFIG.items() if isinstance(value, int | float)}


def test_yaml_over_config_over_recipe() -> None:
    yaml = Source("y.yaml", {"layer_norm_epsilon": 1e-5})
    config = Source("config.json", {**SIZES, "layer_norm_epsilon": 1e-8, "n_layer": 2})
    recipe = Source("recipe", {"n_layer": 30, "layer_norm_epsilon": 1e-6})
    merged = merge(TELECHAT, [yaml, config, recipe])
    assert merged.values["layer_norm_epsilon"] == 1e-5
    assert merged.values["n_layer"] == 2
    lines = [str(found) for found in merged.disagreements]
    assert lines == [
        "n_layer: config.json says 2 and is followed; recipe says 30",
        "layer_norm_epsilon: y.yaml says 1e-05 and is followed; config.json says 1e-08, recipe says 1e-06",
    ]
    assert merged.disagreements[0].to_dict()["others"] == [{"source": "recipe", "value": 30}]


def test_defaults_follow_mindformers() -> None:
    sizes = {
        key: value
        for key, value in SIZES.items()
        if key not in ("training_seqlen", "base_seqlen", "num_key_value_heads")
    }
    values = merge(TELECHAT, [Source("config.json", sizes)]).values
    assert values["num_key_value_heads"] == values["n_head"]
    assert values["training_seqlen"] == values["base_seqlen"] == values["seq_length"]
    assert values["extend_method"] == "DYNAMIC_NTK"


def test_training_length_follows_the_original_length() -> None:
    """A longer seq_length must not look like longer training: dynamic NTK would scale every prompt."""
    sizes = {key: value for key, value in SIZES.items() if key not in ("training_seqlen", "base_seqlen")}
    values = merge(TELECHAT, [Source("y.yaml", {**sizes, "seq_length": 128, "base_seqlen": 64})]).values
    assert values["training_seqlen"] == 64
    values = merge(TELECHAT, [Source("y.yaml", {**sizes, "seq_length": 128, "training_seqlen": 64})]).values
    assert values["base_seqlen"] == 64


def test_no_extension_is_an_opinion() -> None:
    merged = merge(TELECHAT, [Source("y.yaml", {"extend_method": None}), Source("config.json", SIZES)])
    assert merged.values["extend_method"] is None


def test_what_nobody_says() -> None:
    problems = merge(TELECHAT, [Source("recipe", {})]).problems
    assert {problem.where for problem in problems} == {
        "vocab_size",
        "hidden_size",
        "n_layer",
        "n_head",
        "ffn_hidden_size",
        "seq_length",
    }


def test_values_out_of_range() -> None:
    (problem,) = merge(TELECHAT, [Source("config.json", {**SIZES, "n_layer": 0})]).problems
    assert str(problem) == "config.json  n_layer: 0 is too small — it is at least 1"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (1, 1.0, True),
        (1e-5, 1.0e-05, True),
        (1, True, False),
        (2, [2], True),
        ([1, 2], [2, 1], False),
        ("a", "b", False),
    ],
)
def test_same_value(first: Any, second: Any, same: bool) -> None:
    assert same_value(first, second) is same


@pytest.mark.parametrize(
    ("kind", "value", "fine"),
    [
        ("int", 3, True),
        ("int", 3.0, False),
        ("int", True, False),
        ("float", "1e-5", True),
        ("float", "x", False),
        ("bool", 1, False),
        ("str", 1, False),
        ("ids", [1, 2], True),
        ("ids", [], False),
        ("ids", -1, False),
        ("any", object(), True),
    ],
)
def test_checked_value(kind: Any, value: Any, fine: bool) -> None:
    assert (checked_value(kind, value)[1] == "") is fine
