"""The yaml files that the models' own documents show are taken as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from builder.package import Order, plan_order
from builder.plan import Plan
from builder.sources import Requested
from contract.faults import Fault
from tests.builder.published import tokenizer_of, write_sources

YAMLS = Path(__file__).parent / "yamls"
TELECHAT_16K = {
    "type": "TelechatConfig",
    "seq_length": 16384,
    "max_position_embedding": 8192,
    "extend_method": "DYNAMIC_NTK",
    "block_size": 16,
    "num_blocks": 1024,
}


def planned(folder: Path, recipe: str, family: str, path: Path) -> Plan:
    pieces = 1000 if family in ("telechat", "llama", "baichuan") else None
    sources = write_sources(folder / "sources", recipe, tokenizer_of(family, pieces))
    (sources / "config.json").unlink()
    requested = Requested(weights=sources, yaml=path)
    return plan_order(Order(model=recipe, requested=requested, out=folder / "out"))[1]


@pytest.mark.parametrize(
    ("name", "recipe", "family", "length"),
    [
        ("glm2_6b", "chatglm2_6b", "chatglm", 193),
        ("llama2_13b", "llama2_13b", "llama", 4096),
        ("baichuan2_13b", "baichuan2_13b_chat", "baichuan", 512),
    ],
)
def test_a_yaml_of_the_documents(tmp_path: Path, name: str, recipe: str, family: str, length: int) -> None:
    plan = planned(tmp_path, recipe, family, YAMLS / f"predict_{name}.yaml")
    assert plan.serving.limits.max_seq_len == length
    theirs = yaml.safe_load((YAMLS / f"predict_{name}.yaml").read_text(encoding="utf-8"))
    ours = yaml.safe_load(plan.files[f"predict_{recipe}.yaml"])
    assert ours["load_checkpoint"] == "./"
    assert ours["model"]["arch"] == theirs["model"]["arch"]
    for key, value in theirs["model"]["model_config"].items():
        same = float(value) == ours["model"]["model_config"][key] if key == "layernorm_epsilon" else False
        assert same or ours["model"]["model_config"][key] == value, key


def with_model_config(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "predict_x.yaml"
    path.write_text(yaml.safe_dump({"model": {"model_config": values}}))
    return path


def test_telechat2_up_to_16k(tmp_path: Path) -> None:
    plan = planned(tmp_path, "telechat2_7b", "telechat", with_model_config(tmp_path, TELECHAT_16K))
    assert plan.serving.limits.max_seq_len == 16384
    config = yaml.safe_load(plan.files["config.json"])
    assert (config["base_seqlen"], config["training_seqlen"], config["seq_length"]) == (8192, 8192, 16384)
    assert config["extend_method"] == "DYNAMIC_NTK"


def test_telechat2_is_not_extended_without_the_method(tmp_path: Path) -> None:
    path = with_model_config(tmp_path, {**TELECHAT_16K, "extend_method": "None"})
    with pytest.raises(
        Fault, match=r'16384 is more than base_seqlen \(8192\) .* extend_method: "DYNAMIC_NTK"'
    ):
        planned(tmp_path, "telechat2_7b", "telechat", path)


def test_telechat2_s_experts(tmp_path: Path) -> None:
    path = tmp_path / "predict_x.yaml"
    experts = {"expert_num": 16, "num_experts_chosen": 4, "norm_topk_prob": True, "shared_expert_num": 0}
    path.write_text(
        yaml.safe_dump({"model": {"model_config": {"intermediate_size": 6144}}, "moe_config": experts})
    )
    plan = planned(tmp_path, "telechat2_39b_a12b", "telechat", path)
    assert yaml.safe_load(plan.files["config.json"])["num_experts_per_tok"] == 4
    assert yaml.safe_load(plan.files["predict_telechat2_39b_a12b.yaml"])["moe_config"] == experts
    path.write_text(
        yaml.safe_dump({"model": {"model_config": {"num_layers": 30}}, "moe_config": {"expert_nun": 16}})
    )
    with pytest.raises(Fault, match=r"moe_config\.expert_nun: unknown key — did you mean expert_num\?"):
        planned(tmp_path, "telechat2_39b_a12b", "telechat", path)


@pytest.mark.parametrize("length", [32768, 65536])
def test_internlm2_past_its_trained_length(tmp_path: Path, length: int) -> None:
    """Dynamic NTK doubles the reach; the length it was trained at stays what it is."""
    path = with_model_config(tmp_path, {"type": "InternLM2Config", "seq_length": length})
    plan = planned(tmp_path, "internlm2_5_7b_chat", "internlm2", path)
    assert plan.serving.limits.max_seq_len == length
    assert yaml.safe_load(plan.files["config.json"])["max_position_embeddings"] == 32768


def test_what_a_yaml_cannot_ask_for(tmp_path: Path) -> None:
    path = with_model_config(
        tmp_path, {"type": "InternLM2Config", "seq_length": 65537, "extend_method": "PI"}
    )
    with pytest.raises(Fault) as caught:
        planned(tmp_path, "internlm2_5_7b_chat", "internlm2", path)
    assert "seq_length: 65537 is more than" in caught.value.message
    assert "extend_method: is 'PI'; internlm2 models are not extended so" in caught.value.message
