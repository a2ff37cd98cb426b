"""Packaging from end to end, in this process."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

from builder.rendering import INPUTS, OUTPUTS
from contract.manifest import find_differences, read_manifest
from contract.networks import is_known
from contract.serving import read_serving
from tests.builder.conftest import CONFIG, Builder, Workshop, tensors

FILES = [
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "manifest.json",
    "mindformers_tokenizer.py",
    "model.safetensors",
    "predict_tiny.yaml",
    "telechat2.py",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
]


def package(builder: Builder, workshop: Workshop, *more: object) -> Any:
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository, "--json", *more)
    assert run.code == 0, run.out
    return run.json()


def test_the_whole_directory(builder: Builder, workshop: Workshop) -> None:
    result = package(builder, workshop)
    place = workshop.repository / "tiny" / "1"
    assert result["status"] == "built"
    assert result["path"] == str(place)
    assert sorted(path.name for path in place.iterdir()) == FILES
    assert workshop.written() == sorted(
        ["tiny", "tiny/1", "tiny/config.pbtxt", *(f"tiny/1/{name}" for name in FILES)]
    )
    manifest = read_manifest(place)
    assert sorted(manifest.files) == sorted(set(FILES) - {"manifest.json"})
    assert find_differences(place, manifest) == []
    assert is_known(str(manifest.files["telechat2.py"].sha256))
    assert (place / "model.safetensors").read_bytes() == (workshop.sources / "model.safetensors").read_bytes()
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


def test_config_and_serving_block(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    config = workshop.config()
    assert {key: config[key] for key in CONFIG} == CONFIG
    serving = read_serving(workshop.repository / "tiny" / "1")
    assert serving.backend == "ms"
    assert serving.network == "telechat2.py"
    assert serving.layer_api == 2
    assert serving.limits.max_seq_len == 64
    assert serving.limits.max_input_tokens == 63
    assert serving.dtype == "float16"
    assert serving.eos_token_ids == [2]
    assert serving.prompt.chat_template == "chat_template.jinja"
    assert not serving.prompt.add_bos


def test_pbtxt_is_tritons_model_config(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop, "--name", "other")
    text = (workshop.repository / "other" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("other", "ms", 0)
    assert config.model_transaction_policy.decoupled
    names = model_config_pb2.DataType.Name
    assert [(tensor.name, names(tensor.data_type), *tensor.dims) for tensor in config.input] == list(INPUTS)
    assert [(tensor.name, names(tensor.data_type), *tensor.dims) for tensor in config.output] == list(OUTPUTS)
    assert all(tensor.optional for tensor in config.input)


def test_yaml_has_relative_paths_only(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    data = yaml.safe_load((workshop.repository / "tiny/1/predict_tiny.yaml").read_text())
    assert data["load_checkpoint"] == "./"
    assert data["processor"]["tokenizer"]["vocab_file"] == "./tokenizer.model"
    assert "/data" not in json.dumps(data)
    assert data["model"]["model_config"]["extend_method"] == "None"


def test_same_inputs_same_bytes(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    builder("package", "--model", workshop.recipe, "--out", workshop.folder / "again")
    for path in sorted((workshop.repository / "tiny").rglob("*")):
        if path.is_file():
            twin = workshop.folder / "again" / "tiny" / path.relative_to(workshop.repository / "tiny")
            assert path.read_bytes() == twin.read_bytes(), path


def test_the_demo_model(builder: Builder, workshop: Workshop) -> None:
    run = builder("package", "--model", "telechat2_tiny", "--out", workshop.repository, "--json")
    assert run.code == 0, run.out
    assert builder("check", run.json()["path"]).code == 0
    assert builder("verify", run.json()["path"]).code == 0


def test_versions(builder: Builder, workshop: Workshop) -> None:
    assert package(builder, workshop)["version"] == "1"
    assert package(builder, workshop)["status"] == "already_built"
    assert builder("package", "--model", workshop.recipe, "--out", workshop.repository).out.startswith(
        "already built"
    )
    workshop.edit_yaml(seq_length=32)
    assert package(builder, workshop)["version"] == "2"
    assert package(builder, workshop, "--version", 7)["version"] == "7"
    refused = builder("package", "--model", workshop.recipe, "--out", workshop.repository, "--version", 1)
    assert refused.code == 6
    assert "versions are not overwritten" in refused.err
    before = (workshop.repository / "tiny/2/config.json").read_bytes()
    assert package(builder, workshop, "--version", 1, "--replace")["status"] == "built"
    assert workshop.config(1)["seq_length"] == 32
    assert (workshop.repository / "tiny/2/config.json").read_bytes() == before
    assert sorted(path.name for path in (workshop.repository / "tiny").iterdir()) == [
        "1",
        "2",
        "7",
        "config.pbtxt",
    ]


def test_an_earlier_version_of_the_same_inputs_is_found(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    workshop.edit_yaml(seq_length=32)
    package(builder, workshop)
    workshop.edit_yaml(seq_length=64)
    assert package(builder, workshop)["path"].endswith("tiny/1")


def test_changed_weights_of_the_same_shape_are_noticed(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    arrays = load_file(workshop.sources / "model.safetensors")
    arrays["transformer.ln_f.weight"] = arrays["transformer.ln_f.weight"] + np.float16(1)
    save_file(arrays, workshop.sources / "model.safetensors", metadata={"format": "pt"})
    assert package(builder, workshop)["version"] == "2"


def test_a_damaged_version_is_not_already_built(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    (workshop.repository / "tiny/1/tokenizer.json").write_text("{}")
    assert package(builder, workshop, "--version", 1, "--replace")["status"] == "built"
    assert builder("verify", workshop.repository / "tiny").code == 0


def test_replace_repairs_weights(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    path = workshop.repository / "tiny/1/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert builder("verify", workshop.repository / "tiny").code == 7
    assert package(builder, workshop, "--version", 1, "--replace")["status"] == "built"
    assert builder("verify", workshop.repository / "tiny").code == 0


def test_a_missing_pbtxt_is_restored(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    (workshop.repository / "tiny/config.pbtxt").unlink()
    assert package(builder, workshop)["status"] == "already_built"
    assert (workshop.repository / "tiny/config.pbtxt").is_file()


def test_link_and_fill(builder: Builder, workshop: Workshop) -> None:
    result = package(builder, workshop, "--link")
    assert result["not_hashed"] == ["model.safetensors"]
    place = workshop.repository / "tiny/1"
    assert (place / "model.safetensors").samefile(workshop.sources / "model.safetensors")
    assert package(builder, workshop, "--link")["status"] == "already_built"
    verified = builder("verify", place)
    assert verified.code == 0
    assert "not hashed, compared by size only: model.safetensors" in verified.err
    assert builder("verify", "--hash", place, "--json").json()["not_hashed"] == []
    assert read_manifest(place).files["model.safetensors"].sha256 is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_conversion(builder: Builder, workshop: Workshop, dtype: str) -> None:
    result = package(builder, workshop, "--dtype", dtype)
    assert workshop.config()["torch_dtype"] == dtype
    assert read_serving(Path(result["path"])).dtype == dtype
    methods = {entry["name"]: entry["method"] for entry in result["files"]}
    assert methods["model.safetensors"] == ("copy" if dtype == "float16" else "convert")
    assert package(builder, workshop, "--dtype", dtype)["status"] == "already_built"
    assert builder("check", workshop.repository / "tiny").code == 0
    if dtype != "float16":
        assert package(builder, workshop)["version"] == "2"


def test_dry_run_writes_nothing(builder: Builder, workshop: Workshop) -> None:
    result = package(builder, workshop, "--dry-run")
    assert result["status"] == "planned"
    assert not workshop.repository.exists()
    shown = builder("package", "--model", workshop.recipe, "--out", workshop.repository, "--dry-run")
    assert "nothing was written" in shown.out
    assert not workshop.repository.exists()


def test_without_yaml_and_config(builder: Builder, workshop: Workshop) -> None:
    (workshop.sources / "predict_tiny.yaml").unlink()
    package(builder, workshop)
    data = yaml.safe_load((workshop.repository / "tiny/1/predict_tiny.yaml").read_text())
    assert data["model"]["model_config"]["num_layers"] == 2
    assert data["model"]["model_config"]["n_kv_heads"] == 2
    assert data["model"]["model_config"]["extend_method"] == "DYNAMIC_NTK"
    (workshop.sources / "config.json").unlink()
    (workshop.sources / "tokenizer_config.json").unlink()
    (workshop.sources / "generation_config.json").unlink()
    workshop.edit_recipe(
        architecture={key: value for key, value in CONFIG.items() if isinstance(value, int | float)}
    )
    package(builder, workshop)
    config = workshop.config(2)
    assert config["architectures"] == ["TelechatForCausalLM"]
    assert config["n_layer"] == 2
    generation = json.loads((workshop.repository / "tiny/2/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    tokenizer = json.loads((workshop.repository / "tiny/2/tokenizer_config.json").read_text())
    assert tokenizer["eos_token"] == "<_end>"


def test_config_derived_from_yaml_alone(builder: Builder, workshop: Workshop) -> None:
    (workshop.sources / "config.json").unlink()
    package(builder, workshop)
    config = workshop.config()
    for key in ("vocab_size", "hidden_size", "n_layer", "n_head", "num_key_value_heads", "ffn_hidden_size"):
        assert config[key] == CONFIG[key]
    assert config["layer_norm_epsilon"] == 1e-5
    assert config["base_seqlen"] == 64


def test_dynamic_ntk_reaches_the_config(builder: Builder, workshop: Workshop) -> None:
    workshop.edit_yaml(seq_length=128, max_position_embedding=64, extend_method="DYNAMIC_NTK")
    package(builder, workshop)
    config = workshop.config()
    expected = {"seq_length": 128, "base_seqlen": 64, "training_seqlen": 64, "extend_method": "DYNAMIC_NTK"}
    assert {key: config[key] for key in expected} == expected
    assert read_serving(workshop.repository / "tiny/1").limits.max_seq_len == 128


def test_yaml_wins_and_says_so(builder: Builder, workshop: Workshop) -> None:
    workshop.edit_json("config.json", layer_norm_epsilon=1e-8)
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    assert (
        "layer_norm_epsilon: predict_tiny.yaml says 1e-05 and is followed; config.json says 1e-08" in run.err
    )
    assert workshop.config()["layer_norm_epsilon"] == 1e-5
    manifest = read_manifest(workshop.repository / "tiny/1")
    assert any("layer_norm_epsilon" in note for note in manifest.provenance.notes)
    assert "layer_norm_epsilon" in (workshop.repository / "tiny/1/README.md").read_text()


def test_shards_keep_their_names_and_get_an_index(builder: Builder, workshop: Workshop) -> None:
    (workshop.sources / "model.safetensors").unlink()
    names = list(tensors(CONFIG).items())
    save_file(dict(names[:10]), workshop.sources / "model-00001-of-00002.safetensors")
    save_file(dict(names[10:]), workshop.sources / "model-00002-of-00002.safetensors")
    package(builder, workshop)
    place = workshop.repository / "tiny/1"
    index = json.loads((place / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for _, array in names)
    assert set(index["weight_map"]) == {name for name, _ in names}
    assert builder("check", place).code == 0


def test_sources_named_on_the_command_line(builder: Builder, workshop: Workshop, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    workshop.sources.rename(elsewhere)
    (elsewhere / "tokenizer.model").rename(tmp_path / "vocab.model")
    (elsewhere / "predict_tiny.yaml").rename(tmp_path / "mine.yaml")
    package(
        builder,
        workshop,
        "--weights",
        elsewhere,
        "--tokenizer",
        tmp_path / "vocab.model",
        "--yaml",
        tmp_path / "mine.yaml",
    )
    assert Tokenizer.from_file(str(workshop.repository / "tiny/1/tokenizer.json")).token_to_id("<_user>") == 4


def test_a_tokenizer_json_is_taken_as_it_is(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop)
    built = workshop.repository / "tiny/1/tokenizer.json"
    (workshop.sources / "tokenizer.model").unlink()
    (workshop.sources / "tokenizer.json").write_bytes(built.read_bytes())
    package(builder, workshop)
    again = workshop.repository / "tiny/2"
    assert (again / "tokenizer.json").read_bytes() == built.read_bytes()
    assert not (again / "tokenizer.model").exists()


def test_tokenizer_config_needs_no_remote_code(builder: Builder, workshop: Workshop) -> None:
    workshop.edit_json(
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["x.Y", None]},
        tokenizer_class="Telechat2Tokenizer",
    )
    workshop.edit_json("config.json", auto_map={"AutoConfig": "x.Y"})
    package(builder, workshop)
    config = json.loads((workshop.repository / "tiny/1/tokenizer_config.json").read_text())
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["chat_template"] == (workshop.repository / "tiny/1/chat_template.jinja").read_text()
    assert "auto_map" not in workshop.config()


def test_the_publishers_chat_template_wins_over_the_recipes(builder: Builder, workshop: Workshop) -> None:
    workshop.edit_json("tokenizer_config.json", chat_template="{{ messages[0].content }}")
    package(builder, workshop)
    assert (workshop.repository / "tiny/1/chat_template.jinja").read_text() == "{{ messages[0].content }}"
    (workshop.sources / "chat_template.jinja").write_text("{{ 1 }}")
    package(builder, workshop)
    assert (workshop.repository / "tiny/2/chat_template.jinja").read_text() == "{{ 1 }}"


def test_the_card_says_how_to_serve(builder: Builder, workshop: Workshop) -> None:
    package(builder, workshop, "--name", "mine")
    card = (workshop.repository / "mine/1/README.md").read_text()
    for text in (
        "daemon start",
        "client generate -m mine",
        "curl ",
        "predict_mine.yaml",
        "Nobody",
        "64 tokens",
        "float16",
    ):
        assert text in card
    assert "\n\n\n" not in card
