"""``builder package --with-adapter``: adapters in a version's folder, to be served beside its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builder.cli import main
from builder.package import Order, Result, package
from builder.progress import Progress
from builder.sources import Requested
from contract.adapters import read_adapter_config
from contract.faults import Fault
from contract.manifest import find_differences, read_manifest
from contract.serving import read_serving
from tests.builder.hf_models import LLAMA3, write_folder

MODULE = "model.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{MODULE}.lora_{part}.weight" for part in "AB")


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "base", LLAMA3)
    return tmp_path / "base"


def write(folder: Path, extra: Mapping[str, Any] = {}, **config: Any) -> Path:
    random = np.random.default_rng(1)
    tensors = {A: random.standard_normal((2, 64)), B: random.standard_normal((64, 2))}
    folder.mkdir()
    save_file(
        {name: v.astype(np.float16) for name, v in {**tensors, **extra}.items()},
        folder / "adapter_model.safetensors",
    )
    text = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config})
    (folder / "adapter_config.json").write_text(text)
    return folder


def build(base: Path, adapters: Mapping[str, Path], **options: Any) -> Result:
    order = Order(
        model=str(base), requested=Requested(with_adapters=adapters), out=base.parent / "out", **options
    )
    return package(order, Progress(quiet=True))


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_version_brings_its_adapter(base: Path, tmp_path: Path, quantize: str | None) -> None:
    source = write(tmp_path / "lora", use_rslora=True)
    built = build(base, {"pirate": source}, quantize=quantize)
    assert read_serving(built.path).adapters == {"pirate": "adapters/pirate"}
    folder = built.path / "adapters" / "pirate"
    before, after = (load_file(path / "adapter_model.safetensors") for path in (source, folder))
    assert before.keys() == after.keys()
    for name in before:
        assert after[name].dtype == np.float16
        assert np.array_equal(before[name], after[name])
    scales = [read_adapter_config(path).scale_of(MODULE) for path in (source, folder)]
    assert scales[0] == pytest.approx(scales[1], rel=1e-12)
    manifest = read_manifest(built.path)
    assert {
        "adapters/pirate/adapter_config.json",
        "adapters/pirate/adapter_model.safetensors",
    } <= manifest.files.keys()
    assert not find_differences(built.path, manifest)
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    assert find_differences(built.path, manifest)
    assert "adapters/pirate" in (built.path / "README.md").read_text()


def test_patterns_survive(base: Path, tmp_path: Path) -> None:
    other = "model.layers.1.mlp.up_proj"
    names = [f"base_model.model.{other}.lora_{part}.weight" for part in "AB"]
    extra = {names[0]: np.ones((5, 64)), names[1]: np.ones((96, 5))}
    source = write(tmp_path / "lora", extra, rank_pattern={"up_proj": 5}, alpha_pattern={"up_proj": 1.5})
    folder = build(base, {"a": source}).path / "adapters" / "a"
    config, original = read_adapter_config(folder), read_adapter_config(source)
    for module in (MODULE, other):
        assert config.rank_of(module) == original.rank_of(module)
        assert config.scale_of(module) == pytest.approx(original.scale_of(module), rel=1e-12)


def test_the_adapter_is_part_of_what_a_version_is(base: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "lora")
    assert build(base, {}).status == "built"
    assert build(base, {"a": source}).path.name == "2"
    assert build(base, {"a": source}).status == "already_built"
    assert build(base, {"b": source}).path.name == "3"


def test_a_recipe_names_adapters_beside_itself(base: Path, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "lora")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: mine\ntitle: Mine\nfamily: llama\npublisher: {name: P}\n"
        "sources: {root: recipe, folder: base}\nadapters: {pirate: lora}\n"
    )
    out = ["--out", str(tmp_path / "out"), "-q"]
    with pytest.raises(SystemExit) as ended:
        main(["package", "--model", str(recipe), *out, "--with-adapter", f"sailor={tmp_path / 'lora'}"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "out" / "mine")])
    shown = capsys.readouterr().out
    assert "adapter    pirate, in adapters/pirate" in shown
    assert "adapter    sailor, in adapters/sailor" in shown
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "out" / "mine")])
    assert ended.value.code == 0
    shutil.rmtree(tmp_path / "out" / "mine" / "1" / "adapters" / "pirate")
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "out" / "mine")])
    assert ended.value.code != 0


EMBEDDING = "base_model.model.model.embed_tokens.lora_embedding_"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({f"base_model.model.{MODULE}.lora_magnitude_vector": np.ones(64)}, "DoRA"),
        ({"base_model.model.model.norm.weight": np.ones(64)}, "is trained whole"),
        ({f"base_model.model.{MODULE}.lora_B.bias": np.ones(64)}, "model does not have"),
        ({EMBEDDING + "A": np.ones((2, 320)), EMBEDDING + "B": np.ones((64, 2))}, "is no linear layer"),
        ({A: np.ones((2, 32))}, "changes a matrix of"),
    ],
    ids=["dora", "whole", "bias", "embedding", "shape"],
)
def test_what_cannot_be_served_unmerged_is_refused(
    base: Path, tmp_path: Path, extra: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(Fault) as caught:
        build(base, {"x": write(tmp_path / "lora", extra)})
    assert words in str(caught.value)
    if words in ("DoRA", "is trained whole", "is no linear layer"):
        assert "merge it into the weights: --adapter" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "x" * 101])
def test_names_that_are_no_names(base: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(Fault, match="cannot be an adapter's name"):
        build(base, {name: write(tmp_path / "lora")})


def test_the_models_own_name_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="cannot have the name of its model"):
        build(base, {"base": write(tmp_path / "lora")}, name="base")


@pytest.mark.parametrize(
    ("name", "folder"), [("x", "/etc"), ("x", "../x"), ("x", "a/../../x"), ("../x", "x")]
)
def test_a_serving_block_cannot_name_what_lies_outside(base: Path, name: str, folder: str) -> None:
    path = build(base, {}).path
    config = json.loads((path / "config.json").read_text())
    config["serving"]["adapters"] = {name: folder}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Fault, match=r"is outside the model directory|cannot be an adapter's name"):
        read_serving(path)
