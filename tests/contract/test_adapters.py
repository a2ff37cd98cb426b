"""What an adapter's config and names mean."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from contract.adapters import parse_adapter_config, parse_name, read_adapter_config
from contract.faults import Fault, FaultKind

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            ("model.layers.0.self_attn.q_proj", "A"),
        ),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", ("model.layers.0.mlp.up_proj", "B")),
        (
            "llm.base_model.model.model.layers.0.attention.wqkv.lora_A.default.weight",
            ("model.layers.0.attention.wqkv", "A"),
        ),
        ("base_model.model.m.o_proj.lora_magnitude_vector", ("m.o_proj", "magnitude")),
        ("base_model.model.m.o_proj.lora_magnitude_vector.default.weight", ("m.o_proj", "magnitude")),
        ("base_model.model.m.q_proj.lora_B.bias", ("m.q_proj", "bias")),
        ("base_model.model.model.embed_tokens.lora_embedding_A", ("model.embed_tokens", "embedding_A")),
        ("base_model.model.lm_head.weight", ("lm_head.weight", "saved")),
        ("base_model.model.lm_head.modules_to_save.default.weight", ("lm_head.weight", "saved")),
        ("base_model.model.m.q_proj.base_layer.bias", ("m.q_proj.bias", "saved")),
        ("model.layers.0.attention.wq.mindpet_delta_lora_a", ("model.layers.0.attention.wq", "A")),
        ("model.layers.0.attention.wq.mindpet_delta_lora_B", ("model.layers.0.attention.wq", "B")),
    ],
)
def test_names_say_which_part_of_which_module(name: str, meaning: tuple[str, str]) -> None:
    assert parse_name(name) == meaning


def test_the_scale_follows_patterns_and_stabilisation() -> None:
    config = parse_adapter_config(
        {**CONFIG, "rank_pattern": {"layers.1.q": 4}, "alpha_pattern": {"q": 2}}, "here"
    )
    assert config.scale_of("model.layers.0.v") == 2.0
    assert config.scale_of("model.layers.0.q") == 0.25
    assert config.rank_of("model.layers.1.q") == 4
    assert config.rank_of("model.layers.11.q") == 8, "the pattern begins at a whole name"
    assert config.scale_of("model.layers.1.q") == 0.5
    stable = parse_adapter_config({**CONFIG, "use_rslora": True}, "here")
    assert stable.scale_of("any") == 16 / math.sqrt(8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"init_lora_weights": "pissa"}, "changed the base model's weights"),
        ({"init_lora_weights": "loftq"}, "changed the base model's weights"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"r": 0}, "positive whole number"),
        ({"r": True}, "positive whole number"),
        ({"lora_alpha": "16"}, "positive number"),
        ({"rank_pattern": {"q": 0}}, "positive number"),
        ({"alpha_pattern": {"(": 4}}, "positive number"),
        ({"alpha_pattern": [1]}, "positive number"),
        ({"lora_alpha": 10**400}, "positive number"),
        ({"rank_pattern": {"(?i)q": 4}}, "positive number"),
    ],
)
def test_what_cannot_be_computed_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Fault, match=words) as caught:
        parse_adapter_config({**CONFIG, **change}, "adapter_config.json")
    assert next(iter(change)) in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [r"q", r"layers.1.q", r"layers\.\d+\.q", r".*\.(q|k)", r"model.layers.(?:1|11).[qk]", r"^model.*q"],
)
def test_a_pattern_is_an_expression_for_the_end_of_a_name(pattern: str) -> None:
    config = parse_adapter_config({**CONFIG, "rank_pattern": {pattern: 4}}, "here")
    assert config.rank_of("model.layers.1.q") == 4
    assert config.rank_of("model.layers.1.qv") == 8


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "a?" * 30 + "a" * 30, "(a|aa)" * 30 + "b", ".*" * 20 + "b", "(?x:(a+) +)b"],
)
def test_a_pattern_that_may_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(Fault, match="rank_pattern"):
        parse_adapter_config({**CONFIG, "rank_pattern": {pattern: 4}}, "here")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(Fault, match=r"adapter_config\.json"):
        read_adapter_config(tmp_path)


def test_a_folder_without_a_config_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="is not an adapter") as caught:
        read_adapter_config(tmp_path)
    assert caught.value.kind is FaultKind.NOT_FOUND
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert read_adapter_config(tmp_path).rank == 8
