"""``builder convert``: every form there and back, bit for bit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builder.recipe import find_recipe
from tests.builder.checkpoints.arrays import arrays_of, same
from tests.builder.conftest import CONFIG, Builder
from tests.builder.conversion.conftest import Convert, entries, refused, write_hf

ROUTES: dict[str, list[tuple[str, list[str]]]] = {
    "ckpt": [("a.ckpt", ["--to", "mindformers-r1"])],
    "qkv": [
        ("kv.ckpt", ["--to", "mindformers-r1", "--kv-concat"]),
        ("qkv.ckpt", ["--to", "mindformers-r1", "--qkv-concat"]),
    ],
    "mindformers": [("mcore", ["--to", "mindformers"])],
    "mindspore safetensors": [("r1.safetensors", ["--to", "mindformers-r1", "--qkv-concat"])],
    "bin": [("bin", ["--to", "hf", "--format", "bin", "--max-shard-size", "4KB"])],
    "one bin": [("pytorch_model.bin", [])],
    "shards": [("shards", ["--max-shard-size", "8KiB"])],
    "ranks": [
        ("two", ["--to", "mindformers-r1", "--qkv-concat", "--ranks", "2"]),
        ("one.ckpt", ["--to", "mindformers-r1", "--kv-concat"]),
        ("again", ["--to", "mindformers", "--ranks", "2", "--format", "safetensors", "--vocab-emb-dp"]),
    ],
}


@pytest.mark.parametrize("route", ROUTES)
def test_there_and_back_is_the_same_file(route: str, source: Path, convert: Convert, tmp_path: Path) -> None:
    place = source
    for name, options in ROUTES[route]:
        run = convert(place, tmp_path / "out" / name, *options)
        assert run.code == 0, run.err
        place = tmp_path / "out" / name
    assert convert(place, tmp_path / "back", "--to", "hf").code == 0
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()
    assert entries(tmp_path / "back") == ["SHA256SUMS", "model.safetensors"]


def test_a_result_comes_with_its_checksums(source: Path, convert: Convert, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "out", "--format", "bin", "--max-shard-size", "8KB").code == 0
    checked = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "out", check=False)
    assert checked.returncode == 0
    index = json.loads((tmp_path / "out" / "pytorch_model.bin.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(source / "model.safetensors"))


def test_qkv_concat_agrees_with_the_documented_script(source: Path, convert: Convert, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "qkv.ckpt", "--to", "mindformers-r1", "--qkv-concat").code == 0
    packed, arrays = arrays_of(tmp_path / "qkv.ckpt"), load_file(source / "model.safetensors")
    width = CONFIG["hidden_size"] // CONFIG["n_head"]
    blocks = np.split(
        arrays["transformer.h.1.self_attention.key_value.weight"], 2 * CONFIG["num_key_value_heads"]
    )
    assert blocks[0].shape[0] == width
    query = arrays["transformer.h.1.self_attention.query.weight"]
    expected = np.concatenate([query, *blocks[::2], *blocks[1::2]])
    assert np.array_equal(packed["model.layers.1.attention.w_qkv.weight"], expected)


def test_converts_the_dtype(source: Path, convert: Convert, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "half.safetensors", "--dtype", "float16").code == 0
    halves = {name: array.astype("<f2") for name, array in load_file(source / "model.safetensors").items()}
    assert same(load_file(tmp_path / "half.safetensors"), halves)


def test_meta_shards_are_merged_and_written(builder: Builder, tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64},
    }
    hf = write_hf(tmp_path / "hf", "llama", config)
    meta, back = tmp_path / "meta", tmp_path / "back"
    assert builder("convert", hf, meta, "--to", "meta", "--ranks", "2", "-q").code == 0
    assert entries(meta) == ["SHA256SUMS", "consolidated.00.pth", "consolidated.01.pth"]
    params = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1}
    (meta / "params.json").write_text(json.dumps(params))
    run = builder("convert", meta, back, "--to", "hf")
    assert run.code == 0, run.err
    assert "2 Meta files, llama in meta form" in run.err
    assert (back / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_bmtrain_there_and_back(builder: Builder, tmp_path: Path) -> None:
    recipe = find_recipe("fm9g_4b").recipe
    config = {
        **recipe.architecture,
        **{"architectures": ["FM9GForCausalLM"], "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 4},
    }
    hf = write_hf(tmp_path / "hf", "fm9g", config)
    assert builder("convert", hf, tmp_path / "fm9g.pt", "--to", "bmtrain", "-q").code == 0
    run = builder("convert", tmp_path / "fm9g.pt", tmp_path / "back", "--to", "hf", "--model", hf)
    assert run.code == 0, run.err
    assert "torch, fm9g in bmtrain form" in run.err
    assert (tmp_path / "back/model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_experts_for_the_grouped_product_on_two_ranks(builder: Builder, tmp_path: Path) -> None:
    recipe = find_recipe("telechat2_39b_a12b").recipe
    config = {
        **recipe.architecture,
        **{"architectures": ["TelechatForCausalLM"], "model_type": "telechat", "vocab_size": 40},
        **{"hidden_size": 16, "n_layer": 2, "n_head": 4, "num_key_value_heads": 2, "ffn_hidden_size": 24},
    }
    hf = write_hf(tmp_path / "hf", recipe.family, config)
    options = ("--to", "mindformers-r1", "--gmm", "--ranks", "2", "--qkv-concat", "-q")
    assert builder("convert", hf, tmp_path / "ranks", *options).code == 0
    stacked = arrays_of(tmp_path / "ranks/rank_1/checkpoint_1.ckpt")[
        "model.layers.0.feed_forward.ffn.w1.weight"
    ]
    arrays = load_file(hf / "model.safetensors")
    one = arrays["transformer.h.0.mlp.local_experts.3.gate_proj.weight"]
    assert np.array_equal(stacked[3], one[12:].T)
    run = builder("convert", tmp_path / "ranks", tmp_path / "back", "--to", "hf", "--model", hf)
    assert run.code == 0, run.err
    assert (tmp_path / "back/model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_training_state_is_left_out_and_named(source: Path, builder: Builder, tmp_path: Path) -> None:
    assert builder("convert", source, tmp_path / "a.safetensors", "--to", "mindformers-r1", "-q").code == 0
    arrays = load_file(tmp_path / "a.safetensors")
    name = "model.layers.0.attention.wo.weight"
    save_file(
        {**arrays, f"adam_m.{name}": arrays[name], "epoch_num": np.ones(1, "i4")}, tmp_path / "b.safetensors"
    )
    run = builder("convert", tmp_path / "b.safetensors", tmp_path / "c", "--to", "hf", "--model", source)
    assert run.code == 0
    assert f"left out, no weights: adam_m.{name}, epoch_num" in run.err
    assert (tmp_path / "c/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_json_and_dry_run_and_discard_tell_the_same(source: Path, builder: Builder, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    arguments = ("convert", source, target, "--to", "mindformers-r1", "--json")
    planned, discarded = builder(*arguments, "--dry-run").json(), builder(*arguments, "--discard").json()
    assert not target.parent.exists()
    written = builder(*arguments).json()
    assert [run["status"] for run in (planned, discarded, written)] == ["planned", "discarded", "converted"]
    assert discarded["files"] == written["files"]
    assert planned["tensors"] == written["tensors"] == 23
    assert planned["files"][0]["size"] >= written["files"][0]["size"]
    assert written["found"] == "safetensors, telechat in hf form"


def test_names_that_are_kept_need_no_known_model(source: Path, builder: Builder, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    arrays = {"embeddings.weight": np.ones((3, 4), "f2"), "ids": np.arange(3)}
    save_file(arrays, source / "model.safetensors")
    assert builder("convert", source, tmp_path / "a.bin", "-q").code == 0
    assert same(arrays_of(tmp_path / "a.bin"), arrays)
    refused(builder("convert", source, tmp_path / "b", "--to", "mindformers-r1"), "BertModel")
