"""``builder convert`` on the command line: every form there and back, and everything that can be wrong."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builder.checkpoints.safetensors_header import TensorEntry, write_header
from builder.conversion import convert as use_case
from builder.families import FAMILIES
from builder.recipe import find_recipe
from builder.staging import publish
from tests.builder.checkpoints.arrays import arrays_of, same
from tests.builder.conftest import CONFIG, Builder, Run, spawn, tensors

Convert = Callable[..., Run]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small TeleChat2 by HuggingFace's names."""
    folder = tmp_path / "source"
    folder.mkdir()
    arrays = {name: array.astype("f4") for name, array in tensors(CONFIG).items()}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def convert(builder: Builder, source: Path) -> Convert:
    """The command, told which model it is."""

    def run(*arguments: object) -> Run:
        return builder("convert", *arguments, "--model", source, "-q")

    return run


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


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


def write_hf(folder: Path, family: str, config: dict[str, Any]) -> Path:
    """A folder as a hub has it, with random weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    expected = FAMILIES[family].expected_tensors(config)
    arrays = {name: rng.normal(size=shape).astype("f4") for name, shape in expected}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder


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


def refused(run: Run, *words: str) -> None:
    """One sentence with these words, a remedy, no traceback."""
    assert run.code in (2, 4, 6), (run.out, run.err)
    assert all(word in run.err for word in words), run.err
    assert "hint: " in run.err or " — " in run.err
    assert "Traceback" not in run.err


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


def test_names_that_are_kept_need_no_known_model(source: Path, builder: Builder, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    arrays = {"embeddings.weight": np.ones((3, 4), "f2"), "ids": np.arange(3)}
    save_file(arrays, source / "model.safetensors")
    assert builder("convert", source, tmp_path / "a.bin", "-q").code == 0
    assert same(arrays_of(tmp_path / "a.bin"), arrays)
    refused(builder("convert", source, tmp_path / "b", "--to", "mindformers-r1"), "BertModel")


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


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """1.5 GB of weights that take no room."""
    folder = tmp_path / "large"
    folder.mkdir()
    config = {**CONFIG, "vocab_size": 8_000_000, "hidden_size": 32, "n_head": 4}
    (folder / "config.json").write_text(json.dumps(config))
    position, listed = 0, []
    for name, shape in FAMILIES["telechat"].expected_tensors(config):
        end = position + 2 * math.prod(shape)
        listed.append(TensorEntry(name, "F16", shape, position, end))
        position = end
    header = write_header(listed, {"format": "pt"})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + position)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_after_an_interrupt_finished_files_are_kept_and_taken_up(
    number: signal.Signals, large: Path, builder: Builder, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    arguments = ("convert", large, target, "--max-shard-size", "1MB")
    journal = tmp_path / ".converting-out" / "journal.json"
    for _ in range(3):
        process = spawn(*arguments, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        deadline = time.monotonic() + 30
        while not journal.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        _out, err = process.communicate(timeout=30)
        if process.returncode != 0:
            break
        shutil.rmtree(target)  # it was faster than the signal
    assert not target.exists()
    kept = {"journal.json", *json.loads(journal.read_text())["files"]}
    if number != signal.SIGKILL:
        assert process.returncode == 130, err
        assert "the same command goes on behind the finished files" in err
        assert {path.name for path in journal.parent.iterdir()} == kept
    run = builder(*arguments, "--json")
    assert run.code == 0
    resumed = [file["name"] for file in run.json()["files"] if file["resumed"]]
    assert {"journal.json", *resumed} == kept
    assert not journal.parent.exists()
    assert (target / "model.safetensors.index.json").is_file()


def test_a_disk_that_becomes_full_keeps_what_is_finished(large: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, 2**22))

    target = tmp_path / "out"
    process = spawn("convert", large, target, "--max-shard-size", "1MB", preexec_fn=limit)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "became full" in err
    assert "run the same command again" in err
    assert not target.exists()
    kept = list(tmp_path.glob(".converting-out/*"))
    assert all(path.stat().st_size < 2**22 for path in kept)


def test_a_finished_file_that_was_damaged_is_made_again(
    source: Path, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    arguments = ("convert", source, target, "--max-shard-size", "8KB", "--json")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(use_case, "_write_small", interrupted)
    assert builder(*arguments).code == 130
    monkeypatch.undo()
    store = tmp_path / ".converting-out"
    damaged, *others = sorted(store.glob("*.safetensors"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    files = builder(*arguments).json()["files"]
    assert {file["name"] for file in files if file["resumed"]} == {path.name for path in others}
    joined: dict[str, Any] = {}
    for path in target.glob("*.safetensors"):
        joined |= load_file(path)
    assert same(joined, load_file(source / "model.safetensors"))


def test_another_conversion_begins_anew(
    source: Path, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(use_case, "_write_small", interrupted)
    assert builder("convert", source, target, "--max-shard-size", "8KB").code == 130
    monkeypatch.undo()
    run = builder("convert", source, target, "--dtype", "float16", "--json")
    assert not any(file["resumed"] for file in run.json()["files"])
    assert entries(target) == ["SHA256SUMS", "model.safetensors"]


def test_too_little_space_is_said_before_the_first_byte(
    source: Path, convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    refused(convert(source, tmp_path / "new" / "out"), "has 1000 B free", "needs 16.1 MiB")
    assert not (tmp_path / "new").exists()


def test_somebody_else_at_the_same_target_is_told(source: Path, convert: Convert, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / ".converting-out"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        refused(convert(source, tmp_path / "out"), "another builder is writing")
    finally:
        os.close(descriptor)


def test_what_came_meanwhile_is_not_overwritten(
    source: Path, convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(folder: Path, place: Path) -> None:
        place.write_text("mine")
        publish(folder, place)

    monkeypatch.setattr("builder.conversion.store.publish", late)
    refused(convert(source, tmp_path / "a.ckpt", "--to", "mindformers-r1"), "a.ckpt exists")
    assert (tmp_path / "a.ckpt").read_text() == "mine"
    assert not list(tmp_path.glob(".converting-*"))
