"""``--quantize``: what is written, that it is the published form, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.quality import held_out
from builder.checkpoints import rewrite
from builder.checkpoints.safetensors_header import DTYPE_BYTES, read_header
from builder.families import FAMILIES
from builder.quantization import expected_tensors, plan_quantization, read_quantization
from contract.faults import Fault
from contract.manifest import read_manifest
from contract.serving import read_serving
from tests.builder.checkpoints.test_group_quantizer import unpack
from tests.builder.conftest import Builder
from tests.builder.hf_models import LLAMA3, QWEN, write_folder

HEAD = "lm_head"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m", LLAMA3)


def quantize(builder: Builder, folder: Path, method: str, *more: object) -> dict[str, Any]:
    out = folder.parent / "out"
    run = builder("package", "--model", folder, "--out", out, "--quantize", method, "--json", *more)
    assert run.code == 0, run.out
    return run.json()


def read_back(place: Path, bits: int, group: int) -> dict[str, Any]:
    """Every tensor under its own name again, as another engine would compute it."""
    stored = load_file(place / "model.safetensors")
    restored = {}
    for name, values in stored.items():
        module, _, part = name.rpartition(".")
        if part == "weight_packed":
            shape = stored[f"{module}.weight_shape"]
            integers = unpack(values.tobytes(), bits, int(shape[1]))
            assert list(integers.shape) == shape.tolist()
            scales = np.repeat(stored[f"{module}.weight_scale"].astype(np.float32), group, axis=1)
            restored[f"{module}.weight"] = integers * scales
        elif part not in ("weight_scale", "weight_shape"):
            restored[name] = values
    return restored


@pytest.mark.parametrize(("method", "bits", "ignore"), [("int8", 8, []), ("int4", 4, [HEAD])])
def test_the_published_form(
    builder: Builder, folder: Path, method: str, bits: int, ignore: list[str]
) -> None:
    group = 32
    result = quantize(builder, folder, method, "--group-size", group)
    place = Path(result["path"])
    config = json.loads((place / "config.json").read_text())
    block = config["quantization_config"]
    assert (block["quant_method"], block["format"]) == ("compressed-tensors", "pack-quantized")
    (form,) = block["config_groups"].values()
    assert form["targets"] == ["Linear"]
    assert {key: form["weights"][key] for key in ("num_bits", "group_size", "symmetric", "strategy")} == {
        "num_bits": bits,
        "group_size": group,
        "symmetric": True,
        "strategy": "group",
    }
    assert block["ignore"] == ignore
    assert read_serving(place).dtype == method == read_manifest(place).provenance.dtype
    assert config["torch_dtype"] == "float32"
    before, after = load_file(folder / "model.safetensors"), read_back(place, bits, group)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    linear = {f"{name}.weight" for name, _ in FAMILIES["llama"].linear_modules(LLAMA3)}
    assert changed == linear - {f"{name}.weight" for name in ignore}
    for name in changed:
        error = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
        assert error < (0.11 if bits == 4 else 0.007)
    worst = result["quantization"]["worst_layers"]
    assert worst[0]["relative_error"] >= worst[-1]["relative_error"] > 0
    name = f"{worst[0]['layer']}.weight"
    error = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
    assert worst[0]["relative_error"] == pytest.approx(error, rel=1e-4)


def test_every_tensor_is_aligned_and_typed(builder: Builder, folder: Path) -> None:
    place = Path(quantize(builder, folder, "int4", "--dtype", "bfloat16")["path"])
    header = read_header(place / "model.safetensors")
    for tensor in header.tensors:
        assert tensor.start % DTYPE_BYTES[tensor.dtype] == 0, tensor
        ending = tensor.name.rpartition(".")[2]
        codes = {"weight_packed": "I32", "weight_shape": "I64"}
        assert tensor.dtype == codes.get(ending, "BF16")
    assert header.data_start % 8 == 0


def test_commands_know_it(builder: Builder, folder: Path) -> None:
    place = quantize(builder, folder, "int4")["path"]
    assert builder("verify", place).code == 0
    assert "quantized  int4 in groups of 64" in builder("check", place).out
    assert "quantized  int4 in groups of 64" in builder("inspect", place).out
    plain = sum(values.size for values in load_file(folder / "model.safetensors").values())
    assert builder("inspect", place, "--json").json()["parameters"] == plain
    card = (Path(place) / "README.md").read_text()
    assert "int4 in groups of 64" in card
    assert "not quantized: lm_head" in card
    run = builder("package", "--model", folder, "--out", folder.parent / "out", "--quantize", "int4")
    assert run.out.startswith("already built")


def test_people_see_the_worst_layers(builder: Builder, folder: Path) -> None:
    order = ("package", "--model", folder, "--out", folder.parent / "out", "--quantize", "int4")
    run = builder(*order, "--group-size", 32)
    assert "quantized 14 layers; changed most: model.layers." in run.err


def test_same_inputs_same_bytes_whatever_the_buffers(
    builder: Builder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(quantize(builder, folder, "int4", "--name", "a")["path"])
    monkeypatch.setattr(rewrite, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(rewrite, "_BLOCK_ELEMENTS", 70)
    second = Path(quantize(builder, folder, "int4", "--name", "b")["path"])
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_different_forms_are_different_versions(builder: Builder, folder: Path) -> None:
    versions = [
        quantize(builder, folder, method, "--group-size", group)["version"]
        for method, group in (("int4", 32), ("int8", 32), ("int4", 64))
    ]
    assert versions == ["1", "2", "3"]


def test_what_the_group_does_not_divide_stays(builder: Builder, folder: Path) -> None:
    """Only down_proj takes 96 values, which groups of 64 do not divide."""
    result = quantize(builder, folder, "int8")
    kept = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    assert result["quantization"]["ignore"] == kept
    assert any("not quantized" in note and kept[1] in note for note in result["notes"])
    assert builder("check", result["path"]).code == 0
    assert f"{kept[0]}.weight" in load_file(Path(result["path"]) / "model.safetensors")


def test_a_tied_head_is_named_for_other_engines() -> None:
    assert plan_quantization("int8", 32, FAMILIES["qwen2"], QWEN).ignore == (HEAD,)


def test_the_embedding_and_the_norms_are_never_quantized() -> None:
    for name, config in (("llama", LLAMA3), ("qwen2", QWEN)):
        modules = dict(FAMILIES[name].linear_modules(config))
        assert not any("embed" in module or "norm" in module for module in modules)
        assert len(modules) == 14 + (not config["tie_word_embeddings"])


def test_nothing_to_quantize() -> None:
    with pytest.raises(Fault, match="groups of 128 divide"):
        plan_quantization("int4", 128, FAMILIES["llama"], LLAMA3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_by_name(builder: Builder, folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 7] = value
    save_file(weights, folder / "model.safetensors")
    out = folder.parent / "out"
    run = builder("package", "--model", folder, "--out", out, "--quantize", "int4")
    assert run.code == 2
    assert f"model.safetensors: {name} holds infinite or NaN values" in run.err
    assert not out.exists()


def test_quantized_folders_are_packaged_as_they_are(builder: Builder, folder: Path, tmp_path: Path) -> None:
    place = Path(quantize(builder, folder, "int4")["path"])
    config = json.loads((place / "config.json").read_text())
    del config["serving"]
    config["quantization_config"]["version"] = "0.9"
    published = write_folder(tmp_path / "published", config)
    (published / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    run = builder("package", "--model", published, "--out", tmp_path / "again", "--json")
    assert run.code == 0, run.out
    assert run.json()["dtype"] == "int4"
    again = Path(run.json()["path"])
    assert (again / "model.safetensors").read_bytes() == (place / "model.safetensors").read_bytes()
    written = json.loads((again / "config.json").read_text())
    assert written["quantization_config"] == config["quantization_config"]
    assert builder("check", again).code == 0
    twice = builder("package", "--model", published, "--quantize", "int8", "--out", tmp_path / "no")
    assert twice.code == 2
    assert "quantized already" in twice.err


@pytest.mark.parametrize(
    "change",
    [
        {"quant_method": "gptq"},
        {"format": "int-quantized"},
        {"config_groups": {}},
        {"ignore": ["re:.*attn.*"]},
    ],
)
def test_other_forms_are_refused(change: dict[str, Any]) -> None:
    block = plan_quantization("int4", 32, FAMILIES["llama"], LLAMA3).to_config()
    assert read_quantization({"quantization_config": block}) is not None
    with pytest.raises(Fault, match="of a form that MindPort does not read"):
        read_quantization({"quantization_config": {**block, **change}})


def test_expected_shapes_of_odd_sizes() -> None:
    config = {**LLAMA3, "vocab_size": 321, "num_hidden_layers": 1}
    block = plan_quantization("int8", 32, FAMILIES["llama"], config).to_config()
    shapes = dict(expected_tensors(FAMILIES["llama"], {**config, "quantization_config": block}))
    assert shapes["lm_head.weight_packed"] == (321, 16)
    assert shapes["lm_head.weight_scale"] == (321, 2)
    assert shapes["lm_head.weight_shape"] == (2,)
    assert shapes["model.embed_tokens.weight"] == (321, 64)


def test_an_odd_vocabulary_end_to_end(builder: Builder, tmp_path: Path) -> None:
    odd = write_folder(tmp_path / "odd", {**LLAMA3, "vocab_size": 321})
    place = Path(quantize(builder, odd, "int8", "--group-size", 32, "--dtype", "float16")["path"])
    assert read_back(place, 8, 32)["lm_head.weight"].shape == (321, 64)
    assert builder("verify", place).code == 0


def test_searched_scales_are_another_version_of_the_same_form(builder: Builder, folder: Path) -> None:
    plain = quantize(builder, folder, "int4")
    searched = quantize(builder, folder, "int4", "--clip-search")
    assert (plain["version"], searched["version"]) == ("1", "2")
    assert any("scale of every group was searched for" in note for note in searched["notes"])
    assert quantize(builder, folder, "int4", "--clip-search")["status"] == "already_built"
    assert quantize(builder, folder, "int4")["path"] == plain["path"]
    before = load_file(folder / "model.safetensors")
    name = f"{plain['quantization']['worst_layers'][0]['layer']}.weight"
    errors = [
        np.linalg.norm(read_back(Path(result["path"]), 4, 64)[name] - before[name])
        for result in (plain, searched)
    ]
    assert errors[1] < errors[0]


def test_a_report_names_every_layer(builder: Builder, folder: Path) -> None:
    path = folder.parent / "report.json"
    result = quantize(builder, folder, "int4", "--group-size", 32, "--report", path)
    report = json.loads(path.read_text())
    errors = [layer["relative_error"] for layer in report["layers"]]
    assert len(errors) == 14
    assert errors == sorted(errors, reverse=True)
    assert report["layers"][:10] == result["quantization"]["worst_layers"]
    assert report["mean_relative_error"] == pytest.approx(np.mean(errors))
    assert (report["dtype"], report["group_size"], report["not_quantized"]) == ("int4", 32, [HEAD])


def test_a_report_that_cannot_be_made_is_refused(builder: Builder, folder: Path) -> None:
    order = ("package", "--model", folder, "--out", folder.parent / "out", "--quantize", "int4")
    nowhere = builder(*order, "--report", folder / "no" / "report.json")
    assert (nowhere.code, "does not exist" in nowhere.err) == (2, True)
    assert builder(*order, "--report", folder).code == 2
    dry = builder(*order, "--report", folder / "report.json", "--dry-run")
    assert (dry.code, "--dry-run rounds no layer" in dry.err) == (2, True)
    assert not (folder.parent / "out").exists()
    assert builder(*order).code == 0
    again = builder(*order, "--report", folder / "report.json")
    assert (again.code, "is already built" in again.err) == (6, True)
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize("option", [("--group-size", 32), ("--clip-search",), ("--report", "r.json")])
def test_what_needs_quantize(builder: Builder, folder: Path, option: tuple[object, ...]) -> None:
    run = builder("package", "--model", folder, *option, "--out", folder.parent / "out")
    assert run.code == 2
    assert "add --quantize" in run.err
    assert builder("package", "--model", folder, "--quantize", "int3").code == 2


def test_the_demo_model(builder: Builder, tmp_path: Path) -> None:
    """What the defaults were chosen by: relative errors of the demo model's layers."""
    limits = {"int8": 0.0068, "int4": 0.1035}
    for method, limit in limits.items():
        run = builder(
            "package", "--model", "telechat2_tiny", "--quantize", method, "--out", tmp_path, "--json"
        )
        found = run.json()["quantization"]
        assert found["worst_layers"][0]["relative_error"] < limit
        assert found["group_size"] == 64
        assert found["ignore"] == {"int8": [], "int4": [HEAD]}[method]
        assert builder("verify", run.json()["path"]).code == 0


@pytest.mark.filterwarnings("ignore:::mindspore")
def test_the_demo_model_foresees_its_answers_as_well(builder: Builder, tmp_path: Path) -> None:
    """The changes of perplexity that the documents promise, on one held-out answer in eight."""
    pytest.importorskip("mindspore", reason="the ms engine needs MindSpore")
    from tests.daemon.backends.ms.test_quantization import load, segment

    found = {}
    for name, options in (("float", ()), ("int8", ("--quantize", "int8")), ("int4", ("--quantize", "int4"))):
        order = ("package", "--model", "telechat2_tiny", "--name", name, "--out", tmp_path, "--json")
        place = Path(builder(*order, *options).json()["path"])
        runner, scores = load(place), []
        for text in held_out(place / "tokenizer.json")[::8]:
            logits = runner.execute([segment(text.ids)])[:-1].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            chosen = rows[np.arange(len(rows)), text.ids[1:]]
            scores.append(chosen[text.learned[1:]])
        runner.close()
        found[name] = np.exp(-np.concatenate(scores).mean())
    assert found["float"] < 1.01
    assert abs(found["int8"] / found["float"] - 1) <= 0.001
    assert abs(found["int4"] / found["float"] - 1) <= 0.03
