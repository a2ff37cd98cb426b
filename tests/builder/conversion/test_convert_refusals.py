"""``builder convert``: what cannot be converted is refused, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.builder.checkpoints.arrays import arrays_of
from tests.builder.conftest import CONFIG, Builder
from tests.builder.conversion.conftest import Convert, entries, refused


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"weight_map": {"a": "../b"}}', '{"weight_map": 3}', "7"]
)
def test_a_garbled_index_is_a_fault(content: str, source: Path, convert: Convert, tmp_path: Path) -> None:
    (source / "model.safetensors.index.json").write_text(content)
    refused(convert(source, tmp_path / "out"), "model.safetensors.index.json is not a weight index")


@pytest.mark.parametrize("content", ["[]", "{", '{"n_head": "four"}', '{"n_head": 0}'])
def test_a_garbled_config_is_a_fault(content: str, source: Path, builder: Builder, tmp_path: Path) -> None:
    if content.startswith('{"'):
        content = json.dumps({**CONFIG, **json.loads(content)})
    (source / "config.json").write_text(content)
    refused(builder("convert", source, tmp_path / "out", "--to", "mindformers-r1"), "config.json")


def edited(source: Path, change: Callable[[dict[str, Any]], None]) -> None:
    arrays = load_file(source / "model.safetensors")
    change(arrays)
    save_file(arrays, source / "model.safetensors", {"format": "pt"})


_DOWN = "transformer.h.0.mlp.down_proj.weight"


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda arrays: arrays.pop(_DOWN), f"1 tensors are missing: {_DOWN}"),
    "surplus": (
        lambda arrays: arrays.update(surplus=np.ones(2, "f4")),
        "telechat checkpoint in hf form: surplus",
    ),
    "shape": (lambda arrays: arrays.update({_DOWN: np.ones((16, 25), "f4")}), f"{_DOWN}: has shape [16, 25]"),
    "dtype": (lambda arrays: arrays.update({_DOWN: np.ones((16, 24), "i4")}), "weights of type I32"),
    "nan": (
        lambda arrays: arrays.update({_DOWN: np.full((16, 24), np.nan, "f4")}),
        "source: model.layers.0.feed_forward.w2.weight holds infinite or NaN values",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_weights_are_refused_and_nothing_is_written(
    what: str, source: Path, convert: Convert, tmp_path: Path
) -> None:
    edited(source, BAD[what][0])
    refused(convert(source, tmp_path / "new" / "out", "--to", "mindformers-r1"), BAD[what][1])
    assert not (tmp_path / "new").exists()


def test_float64_is_kept_and_not_converted(source: Path, convert: Convert, tmp_path: Path) -> None:
    edited(source, lambda arrays: arrays.update({_DOWN: arrays[_DOWN].astype("f8")}))
    assert convert(source, tmp_path / "a.ckpt", "--to", "mindformers-r1").code == 0
    assert arrays_of(tmp_path / "a.ckpt")["model.layers.0.feed_forward.w2.weight"].dtype == np.float64
    refused(convert(source, tmp_path / "b.ckpt", "--to", "mindformers-r1", "--dtype", "float16"), "type F64")


def test_weights_of_several_types_are_put_together_when_one_is_asked_for(
    source: Path, convert: Convert, tmp_path: Path
) -> None:
    name = "transformer.h.0.self_attention.query.weight"
    edited(source, lambda arrays: arrays.update({name: arrays[name].astype("f2")}))
    arguments = (source, tmp_path / "a.ckpt", "--to", "mindformers-r1", "--qkv-concat")
    refused(convert(*arguments), "model.layers.0.attention.w_qkv.weight would be put together of F16 and F32")
    assert convert(*arguments, "--dtype", "float32").code == 0
    assert arrays_of(tmp_path / "a.ckpt")["model.layers.0.attention.w_qkv.weight"].dtype == np.float32


def test_nonfinite_weights_pass_when_allowed(source: Path, convert: Convert, tmp_path: Path) -> None:
    edited(source, BAD["nan"][0])
    assert convert(source, tmp_path / "a.ckpt", "--to", "mindformers-r1", "--allow-nonfinite").code == 0


def test_files_that_are_not_there_or_not_whole(source: Path, convert: Convert, tmp_path: Path) -> None:
    refused(convert(tmp_path / "nowhere", tmp_path / "out"), "does not exist")
    (tmp_path / "empty").mkdir()
    refused(convert(tmp_path / "empty", tmp_path / "out"), "holds no weights")
    assert convert(source, tmp_path / "shards", "--max-shard-size", "4KB").code == 0
    shard = next((tmp_path / "shards").glob("model-00002*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    refused(convert(tmp_path / "shards", tmp_path / "out"), shard.name, "cut short")
    shard.unlink()
    refused(convert(tmp_path / "shards", tmp_path / "out"), "lacks 1 of", shard.name)
    ranks = tmp_path / "ranks"
    assert convert(source, ranks, "--to", "mindformers-r1", "--ranks", "2").code == 0
    shutil.rmtree(ranks / "rank_0")
    refused(convert(ranks, tmp_path / "out", "--to", "hf"), "lacks 1 of its rank folders: 0")
    assert not (tmp_path / "out").exists()


def test_options_that_contradict_one_another(source: Path, convert: Convert, tmp_path: Path) -> None:
    refused(convert(source, tmp_path / "a.ckpt", "--format", "bin"), "another format than --format bin")
    refused(convert(source, tmp_path / "a.ckpt", "--ranks", "2"), "is one file")
    refused(convert(source, tmp_path / "a", "--qkv-concat"), "are for the names of mindformers 1.x")
    refused(convert(source, tmp_path / "a", "--ranks", "3"), "cannot be shared among 3 ranks")
    refused(convert(source, tmp_path / "a", "--max-shard-size", "big"), "'big' is not a size")
    refused(convert(source, tmp_path / "a", "--to", "meta"), "no meta names for the family telechat")
    refused(convert(source, source / "model.safetensors"), "holds the source itself")
    refused(convert(source, source, "--replace"), "holds the source itself")
    (tmp_path / "there").write_text("mine")
    refused(convert(source, tmp_path / "there"), "exists", "--replace")
    assert (tmp_path / "there").read_text() == "mine"


def test_a_target_is_replaced_when_asked(source: Path, convert: Convert, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "a.ckpt", "--to", "mindformers-r1").code == 0
    assert (
        convert(source, tmp_path / "a.ckpt", "--replace", "--to", "mindformers-r1", "--qkv-concat").code == 0
    )
    assert "model.layers.0.attention.w_qkv.weight" in arrays_of(tmp_path / "a.ckpt")
    assert not list(tmp_path.glob(".converting-*"))


def test_only_a_folder_of_its_own_is_replaced(source: Path, convert: Convert, tmp_path: Path) -> None:
    target = tmp_path / "a"
    assert convert(source, target, "--to", "hf").code == 0
    assert convert(source, target, "--to", "hf", "--dtype", "float16", "--replace").code == 0
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("mine")
    refused(convert(source, home, "--to", "hf", "--replace"), "did not write", "remove it yourself")
    assert entries(home) == ["letter.txt"]


def test_a_target_that_cannot_be_made_is_refused(source: Path, builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    refused(builder("convert", source, tmp_path / "file" / "out"), "cannot be written", "choose a target")


def test_an_unknown_model_needs_its_name(source: Path, builder: Builder, tmp_path: Path) -> None:
    assert builder("convert", source, tmp_path / "a.ckpt", "--to", "mindformers-r1", "-q").code == 0
    refused(
        builder("convert", tmp_path / "a.ckpt", tmp_path / "b", "--to", "hf"),
        "wk_v.weight: the checkpoint packs attention heads",
        "--model",
    )
