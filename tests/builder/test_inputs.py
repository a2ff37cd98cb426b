"""Bad inputs: one clear sentence each, all at once, the documented exit code, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.builder.conftest import Builder, Run, Workshop

Damage = Callable[[Workshop], object]


def failed(builder: Builder, workshop: Workshop, *more: object) -> Run:
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository, *more)
    assert run.code != 0
    assert run.out == ""
    assert "Traceback" not in run.err
    assert not workshop.repository.exists()
    return run


def without_tensor(workshop: Workshop) -> None:
    arrays = load_file(workshop.sources / "model.safetensors")
    del arrays["lm_head.weight"]
    save_file(arrays, workshop.sources / "model.safetensors")


def with_tensor(workshop: Workshop) -> None:
    arrays = load_file(workshop.sources / "model.safetensors")
    save_file({**arrays, "extra.weight": np.zeros(1)}, workshop.sources / "model.safetensors")


def cut(workshop: Workshop) -> None:
    path = workshop.sources / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def shard_only(workshop: Workshop) -> None:
    (workshop.sources / "model.safetensors").rename(workshop.sources / "model-00001-of-00002.safetensors")


CASES: dict[str, tuple[Damage, int, str]] = {
    "missing shard": (shard_only, 2, "model-00002-of-00002.safetensors: shard is missing"),
    "truncated file": (cut, 2, "model.safetensors: 10 of"),
    "missing tensor": (without_tensor, 2, "1 tensors are missing: lm_head.weight"),
    "surplus tensor": (with_tensor, 2, "1 tensors are not expected: extra.weight"),
    "wrong shape": (
        lambda w: w.edit_yaml(intermediate_size=32),
        2,
        "has shape [24, 16], the config says [32, 16]",
    ),
    "unknown yaml key": (
        lambda w: w.edit_yaml(num_layer=3),
        2,
        "num_layer: unknown key — did you mean num_layers?",
    ),
    "wrong yaml type": (lambda w: w.edit_yaml(num_layers="two"), 2, "is 'two' — write a whole number"),
    "yaml of another family": (lambda w: w.edit_yaml(type="LlamaConfig"), 2, "is 'LlamaConfig'"),
    "too few blocks": (lambda w: w.edit_yaml(num_blocks=3), 2, "write num_blocks: 4 or more"),
    "heads do not divide": (lambda w: w.edit_yaml(num_heads=5), 2, "16 is not a multiple of n_head (5)"),
    "too long without extension": (
        lambda w: w.edit_yaml(seq_length=128, max_position_embedding=64),
        2,
        'set extend_method: "DYNAMIC_NTK" or lower seq_length',
    ),
    "id outside the vocabulary": (
        lambda w: w.edit_yaml(bos_token_id=999),
        2,
        "999 is not below vocab_size (320)",
    ),
    "wrong end token": (
        lambda w: w.edit_yaml(eos_token_id=3),
        2,
        "'<_end>' is id 2, the model's eos_token_id is 3",
    ),
    "vocabulary too large": (lambda w: w.edit_yaml(vocab_size=100), 2, "the model's vocab_size is 100"),
    "two yamls": (lambda w: (w.sources / "other.yaml").write_text("a: 1"), 2, "holds 2 yaml files"),
    "bad json": (
        lambda w: (w.sources / "config.json").write_text('{"a":\n1,}'),
        2,
        "config.json:2: is not valid JSON",
    ),
    "json is no object": (
        lambda w: (w.sources / "config.json").write_text("[]"),
        2,
        "must hold a JSON object",
    ),
    "bad yaml": (
        lambda w: (w.sources / "predict_tiny.yaml").write_text("a: [1"),
        2,
        "predict_tiny.yaml:1 is not valid YAML",
    ),
    "yaml without sizes": (
        lambda w: (w.sources / "predict_tiny.yaml").write_text("a: 1"),
        2,
        "model.model_config: is missing",
    ),
    "config of another model": (lambda w: w.edit_json("config.json", model_type="qwen2"), 2, "is 'qwen2'"),
    "wrong config type": (lambda w: w.edit_json("config.json", n_head="4"), 2, "config.json  n_head: is '4'"),
    "foreign tokenizer": (
        lambda w: (w.sources / "tokenizer.model").write_text("no"),
        2,
        "is not a SentencePiece model",
    ),
    "bad template": (
        lambda w: (w.sources / "chat_template.jinja").write_text("\n{% if %}"),
        2,
        "chat_template.jinja:2",
    ),
    "no tokenizer": (
        lambda w: (w.sources / "tokenizer.model").unlink(),
        4,
        "no tokenizer.model or tokenizer.json",
    ),
    "no weights": (lambda w: (w.sources / "model.safetensors").unlink(), 4, "put into"),
    "no sources": (lambda w: w.sources.rename(w.folder / "gone"), 4, "https://example.invalid/tiny"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_bad_input(builder: Builder, workshop: Workshop, name: str) -> None:
    damage, code, sentence = CASES[name]
    damage(workshop)
    run = failed(builder, workshop)
    assert run.code == code
    assert sentence in run.err


def test_all_problems_at_once(builder: Builder, workshop: Workshop) -> None:
    cut(workshop)
    workshop.edit_yaml(num_layer=3, top_q=1)
    (workshop.sources / "generation_config.json").write_text("{")
    (workshop.sources / "tokenizer.model").write_text("no")
    run = failed(builder, workshop)
    assert run.err.startswith("error: 5 problems in the inputs of tiny\n")
    assert "top_q: unknown key — did you mean top_" in run.err


def test_problems_for_programs(builder: Builder, workshop: Workshop) -> None:
    workshop.edit_yaml(num_layer=3)
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository, "--json")
    assert run.code == 2
    (problem,) = run.json()["error"]["details"]["problems"]
    assert problem["where"].startswith("predict_tiny.yaml:")
    assert problem["remedy"] == "did you mean num_layers?"
    assert run.err == ""


def test_the_line_of_a_yaml_key(builder: Builder, workshop: Workshop) -> None:
    path = workshop.edit_yaml(num_layer=3)
    line = next(
        number for number, text in enumerate(path.read_text().splitlines(), 1) if "num_layer:" in text
    )
    assert f"predict_tiny.yaml:{line}  model.model_config.num_layer" in failed(builder, workshop).err


def test_recipes_may_lie_beside_the_weights(builder: Builder, workshop: Workshop) -> None:
    for name in ("tiny.yaml", "another.yaml"):
        (workshop.sources / name).write_text(workshop.recipe.read_text())
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    assert run.code == 0, run.err


def test_an_unreadable_file(builder: Builder, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    run = failed(builder, workshop)
    assert run.code == 2
    assert "config.json: cannot be read: Permission denied — check its permissions" in run.err


def test_a_tokenizer_that_would_differ(
    builder: Builder, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.tokenizer.prove.SentencePieceOracle.encode", lambda _self, _text: [1])
    run = failed(builder, workshop)
    assert "tokenizer.json would encode" in run.err


@pytest.mark.parametrize("flag", ["--weights", "--tokenizer", "--yaml"])
def test_a_path_that_does_not_exist(builder: Builder, workshop: Workshop, flag: str) -> None:
    run = failed(builder, workshop, flag, workshop.folder / "nowhere")
    assert run.code == 4
    assert f"check {flag}" in run.err


def test_limits_of_the_recipe_are_checked(builder: Builder, workshop: Workshop) -> None:
    workshop.edit_recipe(limits={"max_seq_len": 100, "max_input_tokens": 100})
    run = failed(builder, workshop)
    assert "100 is more than seq_length (64)" in run.err
    assert "lower it to 99" in run.err


def test_numbers_yaml_reads_as_text(builder: Builder, workshop: Workshop) -> None:
    path = workshop.edit_yaml()
    path.write_text(path.read_text().replace("rms_norm_eps: 1.0e-05", "rms_norm_eps: 1e-5"))
    assert builder("package", "--model", workshop.recipe, "--out", workshop.repository).code == 0
    assert json.loads((workshop.repository / "tiny/1/config.json").read_text())["layer_norm_epsilon"] == 1e-5
