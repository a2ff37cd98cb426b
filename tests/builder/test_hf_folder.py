"""HuggingFace folders are packaged without a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from builder.hf_folder import classic_spelling
from contract.networks import is_known
from contract.serving import read_serving
from tests.builder.conftest import CONFIG, Builder, Run, Workshop
from tests.builder.hf_models import LLAMA3, QWEN, TEMPLATE, write_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def packaged(builder: Builder, tmp_path: Path, folder: Path, *more: object) -> tuple[Path, dict[str, Any]]:
    run = builder("package", "--model", folder, "--out", tmp_path / "out", "--json", *more)
    assert run.code == 0, run.out
    place = Path(run.json()["path"])
    return place, json.loads((place / "config.json").read_text())


@pytest.mark.parametrize(("config", "family"), [(LLAMA3, "llama"), (QWEN, "qwen2")])
def test_a_folder_is_a_model(builder: Builder, tmp_path: Path, config: Any, family: str) -> None:
    folder = write_folder(tmp_path / "My-Model-1.5B", config)
    place, written = packaged(builder, tmp_path, folder)
    assert place == tmp_path / "out" / "My-Model-1.5B" / "1"
    assert {key: written[key] for key in config} == dict(config)
    serving = read_serving(place)
    assert (serving.family, serving.network, serving.dtype) == (family, "decoder.py", "float32")
    assert serving.limits.max_seq_len == config["max_position_embeddings"]
    assert serving.prompt.chat_template == "chat_template.jinja"
    assert serving.prompt.add_bos is (family == "llama")
    assert sorted(serving.eos_token_ids) == [1, 2]
    assert (place / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (place / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (place / "chat_template.jinja").read_text() == TEMPLATE
    generation = json.loads((place / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["top_p"]) == ([1, 2], 0.9)
    manifest = json.loads((place / "manifest.json").read_text())
    assert is_known(manifest["files"]["decoder.py"]["sha256"])
    for command in ("check", "verify", "inspect"):
        assert builder(command, place).code == 0


def test_the_yaml_is_mindformers(builder: Builder, tmp_path: Path) -> None:
    place, _ = packaged(builder, tmp_path, write_folder(tmp_path / "q", QWEN))
    found = yaml.safe_load((place / "predict_q.yaml").read_text())["model"]["model_config"]
    assert (found["type"], found["num_layers"], found["n_kv_heads"]) == ("LlamaConfig", 2, 2)
    assert (found["theta"], found["qkv_has_bias"], found["tie_word_embeddings"]) == (500000.0, True, True)


def test_packaging_twice_and_under_another_name(builder: Builder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    packaged(builder, tmp_path, folder)
    run = builder("package", "--model", f"{folder}/", "--out", tmp_path / "out")
    assert run.out.startswith("already built")
    place, _ = packaged(builder, tmp_path, folder, "--name", "other")
    assert place.parent.name == "other"
    assert builder("check", folder).out.startswith("m: the inputs are sound")


def test_telechat_s_own_folder(builder: Builder, workshop: Workshop, tmp_path: Path) -> None:
    place, written = packaged(builder, tmp_path, workshop.sources)
    assert {key: written[key] for key in CONFIG} == CONFIG
    assert read_serving(place).network == "telechat2.py"


def test_a_sentencepiece_tokenizer_is_converted_and_begins(
    builder: Builder, tmp_path: Path, sentencepiece_bytes: bytes
) -> None:
    folder = write_folder(
        tmp_path / "m", {**LLAMA3, "bos_token_id": 1, "eos_token_id": 2}, tokenizer_config={}
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes)
    place, _ = packaged(builder, tmp_path, folder)
    serving = read_serving(place)
    assert serving.prompt.add_bos
    assert serving.prompt.chat_template is None
    assert {"tokenizer.json", "tokenizer.model"} <= {path.name for path in place.iterdir()}


def test_a_raw_model_needs_no_template_and_no_defaults(builder: Builder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", generation_config=None, tokenizer_config=None)
    place, _ = packaged(builder, tmp_path, folder)
    assert read_serving(place).prompt.chat_template is None
    assert read_serving(place).eos_token_ids == [1, 2]
    assert "client generate -m m --raw" in (place / "README.md").read_text()
    run = builder("package", "--model", folder, "--out", tmp_path / "other")
    assert "client generate -m m --raw" in run.err


def test_a_template_of_its_own(builder: Builder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", tokenizer_config={})
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    place, _ = packaged(builder, tmp_path, folder)
    assert (place / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_the_tokenizer_may_name_one_more_end(builder: Builder, tmp_path: Path) -> None:
    """Fine-tuned chat models end with another token than their base, and say so in the tokenizer only."""
    folder = write_folder(tmp_path / "m", {**QWEN, "eos_token_id": 1}, generation_config=None)
    place, _ = packaged(builder, tmp_path, folder)
    assert read_serving(place).eos_token_ids == [1, 2]


def test_a_stored_head_that_is_tied_is_left_out(builder: Builder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", QWEN)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    place, _ = packaged(builder, tmp_path, folder)
    written = load_file(place / "model.safetensors")
    assert "lm_head.weight" not in written
    assert all(np.array_equal(written[name], weights[name]) for name in written)
    assert "left out" in (place / "README.md").read_text()
    assert builder("verify", place).code == 0


def test_newer_spellings(builder: Builder, tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "torch_dtype")}
    config |= {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "dtype": "float32"}
    _, written = packaged(builder, tmp_path, write_folder(tmp_path / "m", config))
    assert written["rope_theta"] == 500000.0
    assert "rope_parameters" not in written
    assert classic_spelling({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}) == {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0}
    }
    assert classic_spelling({"rope_scaling": None}) == {}


def refused(builder: Builder, tmp_path: Path, config: Any, **files: Any) -> Run:
    folder = write_folder(tmp_path / "m", LLAMA3, **files)
    (folder / "config.json").write_text(json.dumps(config))
    run = builder("package", "--model", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return run


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {**LLAMA3, "rope_scaling": {"rope_type": "su", "factor": 8.0}},
            "rope_scaling: is 'su'; the network",
        ),
        ({**LLAMA3, "rope_scaling": {"type": "linear"}}, "'linear' needs a positive number factor"),
        ({**LLAMA3, "rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "rope_scaling.factor: 'yarn'"),
        ({**LLAMA3, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "number low_freq_factor"),
        ({**LLAMA3, "rope_scaling": {"rope_type": "longrope"}}, "needs the lists short_factor"),
        ({**LLAMA3, "rope_scaling": 2}, "rope_scaling: is 2"),
        ({**LLAMA3, "hidden_act": "gelu"}, "hidden_act: is 'gelu'"),
        ({**LLAMA3, "partial_rotary_factor": 0.5}, "partial_rotary_factor: is not 1"),
        ({**LLAMA3, "num_attention_heads": 5}, "is not a multiple of"),
        ({**LLAMA3, "num_hidden_layers": 3}, "tensors are missing"),
        ({**LLAMA3, "vocab_size": 280}, "tokenizer.json"),
        (
            {**QWEN, "layer_types": ["full_attention", "linear_attention"]},
            "layer_types: has linear_attention",
        ),
        ({**QWEN, "layer_types": ["full_attention"]}, "layer_types: names 1 layers, there are 2"),
        (
            {**QWEN, "sliding_window": None, "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_window: is not set",
        ),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(
    builder: Builder, tmp_path: Path, config: Any, message: str
) -> None:
    run = refused(builder, tmp_path, config)
    assert run.code == 2
    assert message in run.err


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": None},
        {"use_sliding_window": True, "max_window_layers": 1},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ],
)
def test_what_the_network_computes_is_accepted(builder: Builder, tmp_path: Path, change: Any) -> None:
    packaged(builder, tmp_path, write_folder(tmp_path / "m", {**QWEN, **change}))


def test_an_unknown_family_names_the_known_ones(builder: Builder, tmp_path: Path) -> None:
    config = {**LLAMA3, "architectures": ["PhiForCausalLM"], "model_type": "phi"}
    run = refused(builder, tmp_path, config)
    assert run.code == 2
    assert "architectures ['PhiForCausalLM'], which MindPort has no network for" in run.err
    for name in ("telechat", "llama (LlamaForCausalLM)", "qwen2 (Qwen2ForCausalLM)"):
        assert name in run.err
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "model_type 'gpt2'" in builder("package", "--model", tmp_path / "m").err


def test_the_model_type_is_enough(builder: Builder, tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA3.items() if key != "architectures"}
    _, written = packaged(builder, tmp_path, write_folder(tmp_path / "m", config))
    assert written["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        (None, "is a folder without config.json"),
    ],
)
def test_a_config_that_is_none(builder: Builder, tmp_path: Path, content: str | None, message: str) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    run = builder("package", "--model", folder, "--out", tmp_path / "out")
    assert run.code == 2
    assert message in run.err


def test_a_folder_whose_name_is_no_name(builder: Builder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "模型")
    run = builder("package", "--model", folder, "--out", tmp_path / "out")
    assert run.code == 2
    assert "--name NAME" in run.err
    packaged(builder, tmp_path, folder, "--name", "m")


def test_a_snapshot_of_the_hub_is_called_as_the_model(builder: Builder, tmp_path: Path) -> None:
    snapshot = write_folder(tmp_path / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "060db6499f32")
    blob = tmp_path / "blob"
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    place, _ = packaged(builder, tmp_path, snapshot)
    assert place.parent.name == "Qwen2.5-0.5B"
    assert not (place / "model.safetensors").is_symlink()


def test_other_yaml_files_of_a_folder_are_not_read(builder: Builder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "recipe.yaml").write_text("[")
    packaged(builder, tmp_path, folder)


def test_a_packaged_version_can_be_packaged_in_another_form(builder: Builder, tmp_path: Path) -> None:
    place, config = packaged(builder, tmp_path, write_folder(tmp_path / "m"))
    again, quantized = packaged(builder, tmp_path, place, "--quantize", "int4")
    assert again == place.parent / "2"
    assert {key: quantized[key] for key in config if key != "serving"} == {
        key: value for key, value in config.items() if key != "serving"
    }
    same = builder("package", "--model", place, "--out", tmp_path / "out")
    assert same.out.startswith(f"already built: {place}")
