"""GPTQ's and AWQ's integers: packaged value for value, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from builder.checkpoints import packed_words, views
from builder.ready_made import read_ready_made
from contract.faults import Fault
from tests.builder.conftest import Builder
from tests.builder.hf_models import write_folder
from tests.builder.ready_made import WIDE, Form, change, configure, write_meant, write_ready_made
from tests.builder.test_quantization import read_back

LAYER = "model.layers.1.mlp.down_proj"
ASYMMETRIC = "their zero points take int8"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def package(builder: Builder, folder: Path, *more: object) -> dict[str, Any]:
    run = builder("package", "--model", folder, "--out", folder.parent / "out", "--json", *more)
    assert run.code == 0, run.out
    return run.json()


FORMS = [
    (Form(), 4, 32),
    (Form(group=64), 4, 64),
    (Form(group=128), 4, 128),
    (Form(group=256), 4, 128),
    (Form(group=2**80), 4, 128),
    (Form(group=-1), 4, 128),
    (Form(layout="gptq_v2"), 4, 32),
    (Form(bits=8, group=64), 8, 64),
    (Form(scale_dtype=np.float32), 4, 32),
    (Form(symmetric=False), 8, 32),
    (Form(symmetric=False, layout="gptq_v2", group=-1), 8, 128),
    (Form("awq", symmetric=False, group=128), 8, 128),
    (Form("awq", symmetric=False, group=-1), 8, 128),
    (Form("awq", group=64), 4, 64),
]


@pytest.mark.parametrize(("form", "bits", "group"), FORMS)
def test_the_same_numbers(builder: Builder, tmp_path: Path, form: Form, bits: int, group: int) -> None:
    meant = write_ready_made(tmp_path / "m", form)
    result = package(builder, tmp_path / "m")
    assert (result["dtype"], result["quantization"]["group_size"]) == (f"int{bits}", group)
    assert result["quantization"]["ignore"] == ["lm_head"]
    assert any(ASYMMETRIC in note for note in result["notes"]) is not form.symmetric
    found = read_back(Path(result["path"]), bits, group)
    assert found.keys() == meant.keys()
    for name, values in meant.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), values, name)
    assert builder("verify", result["path"]).code == 0
    assert package(builder, tmp_path / "m")["status"] == "already_built"
    config = json.loads((Path(result["path"]) / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize("form", [Form(), Form("awq", symmetric=False)])
def test_the_buffer_does_not_show(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    """The rows of a buffer begin anywhere in a word."""
    write_ready_made(tmp_path / "m", form)
    places = [Path(package(builder, tmp_path / "m", "--name", "a")["path"])]
    monkeypatch.setattr(views.View.chunks, "__defaults__", (700,))
    monkeypatch.setattr(packed_words, "_BLOCK_ELEMENTS", 400)
    places.append(Path(package(builder, tmp_path / "m", "--name", "b")["path"]))
    first, second = ((place / "model.safetensors").read_bytes() for place in places)
    assert first == second


@pytest.mark.parametrize("form", [Form(), Form(symmetric=False), Form("awq", symmetric=False)])
def test_the_engine_computes_the_model_it_stands_for(builder: Builder, tmp_path: Path, form: Form) -> None:
    pytest.importorskip("mindspore", reason="the ms engine needs MindSpore")
    from tests.daemon.backends.ms.test_quantization import logits_of

    meant = write_ready_made(tmp_path / "m", form)
    write_meant(tmp_path / "floats", meant)
    places = [Path(package(builder, tmp_path / name)["path"]) for name in ("m", "floats")]
    ids = [5, 17, 300, 41, 41, 260, 9, 77]
    found, expected = (logits_of(place, ids=ids, activation_dtype="int8") for place in places)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.02


def test_older_writers_keep_the_form_beside(builder: Builder, tmp_path: Path) -> None:
    for name, form, beside in (
        ("gptq", Form(), {"quantize_config": {"bits": 4, "group_size": 32, "desc_act": False}}),
        ("awq", Form("awq"), {"quant_config": {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}}),
    ):
        write_ready_made(tmp_path / name, form, config=WIDE, **beside)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        del config["quantization_config"]
        path.write_text(json.dumps(config))
        assert package(builder, tmp_path / name)["dtype"] == "int4"
        next((tmp_path / name).glob("quant*_config.json")).unlink()
        run = builder("package", "--model", tmp_path / name, "--out", tmp_path / "no")
        assert run.code == 2
        assert "config.json has no quantization_config" in run.err


def test_a_bias_of_zeros_is_left_out_and_another_refused(builder: Builder, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_ready_made(folder, Form())
    change(folder, f"{LAYER}.bias", np.zeros(128, np.float16))
    stored = load_file(Path(package(builder, folder)["path"]) / "model.safetensors")
    assert f"{LAYER}.bias" not in stored
    change(folder, f"{LAYER}.bias", np.ones(128, np.float16))
    run = builder("package", "--model", folder, "--out", tmp_path / "no")
    assert run.code == 2
    assert f"not expected: {LAYER}.bias" in run.err


def _words(*shape: int) -> Any:
    return np.zeros(shape, np.int32)


def lose_order(folder: Path) -> None:
    change(folder, f"{LAYER}.g_idx", None)
    configure(folder, desc_act=True)


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: change(folder, f"{LAYER}.scales", None), f"{LAYER}: has no scales"),
        (lambda folder: change(folder, f"{LAYER}.qzeros", None), f"{LAYER}: has no qzeros"),
        (lambda folder: change(folder, f"{LAYER}.qweight", _words(32)), "I32 of shape [32], not a matrix"),
        (lambda folder: change(folder, f"{LAYER}.qweight", _words(31, 128)), "not the group of each of 248"),
        (lambda folder: change(folder, f"{LAYER}.qzeros", _words(8, 15)), "has shape [8, 15]; GPTQ's"),
        (
            lambda folder: change(folder, f"{LAYER}.scales", np.ones((8, 127), np.float16)),
            "has 127 outputs, which are not whole words of 8",
        ),
        (lambda folder: change(folder, f"{LAYER}.scales", _words(8, 128)), "not a matrix of F16 or BF16"),
        (lambda folder: change(folder, f"{LAYER}.g_idx", _words(255)), "not the group of each of 256 inputs"),
        (
            lambda folder: change(folder, f"{LAYER}.g_idx", (np.arange(256) % 8).astype(np.int32)),
            "into one group (desc_act)",
        ),
        (lambda folder: change(folder, f"{LAYER}.qweight", _words(0, 128)), "I32 of shape [0, 128], not a"),
        (lose_order, "has no g_idx, which desc_act needs"),
        (lambda folder: configure(folder, bits=3), "GPTQ with bits 3, not 4 or 8"),
        (lambda folder: configure(folder, group_size=64), "256 inputs"),
        (lambda folder: configure(folder, bits=4.0), "GPTQ with bits 4.0, not 4 or 8"),
        (lambda folder: configure(folder, group_size="all"), "group_size is 'all'"),
        (lambda folder: configure(folder, checkpoint_format="marlin"), "checkpoint_format is 'marlin'"),
        (lambda folder: configure(folder, dynamic={"a": 1}), "'dynamic' gives layers forms of their own"),
        (lambda folder: configure(folder, quant_method="awq", version="gemv"), "AWQ of version 'gemv'"),
        (lambda folder: configure(folder, quant_method="awq", bits=8), "AWQ with bits 8, not 4"),
        (lambda folder: configure(folder, quant_method="hqq"), "(hqq)"),
    ],
)
def test_what_is_damaged_or_unknown_is_refused(
    builder: Builder, tmp_path: Path, damage: Damage, said: str
) -> None:
    folder = tmp_path / "m"
    write_ready_made(folder, Form())
    damage(folder)
    run = builder("package", "--model", folder, "--out", tmp_path / "out")
    assert run.code == 2
    assert said in run.err
    assert not (tmp_path / "out").exists()


def test_small_groups_and_shifted_bytes_are_refused(builder: Builder, tmp_path: Path) -> None:
    for name, form, said in (
        ("small", Form(group=16), "no group of 32, 64 or 128 divides"),
        ("bytes", Form(bits=8, symmetric=False), "zero points of 8 bits shift"),
    ):
        write_ready_made(tmp_path / name, form)
        run = builder("package", "--model", tmp_path / name, "--out", tmp_path / "out")
        assert run.code == 2
        assert said in run.err
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_refused(builder: Builder, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_ready_made(folder, Form())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    run = builder("package", "--model", folder, "--out", tmp_path / "out")
    assert run.code == 2
    assert "model.safetensors" in run.err
    assert not (tmp_path / "out").exists()


def test_a_block_without_integers_is_refused(builder: Builder, tmp_path: Path) -> None:
    write_folder(tmp_path / "m", {**WIDE, "quantization_config": Form().config()})
    run = builder("package", "--model", tmp_path / "m", "--out", tmp_path / "out")
    assert run.code == 2
    assert "holds no .qweight" in run.err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [*Form().config(), *Form("awq").config(), "dynamic", "w_bit", "q_group_size", "backend"]
)


@given(st.dictionaries(KEYS, JSON), st.sampled_from(["gptq", "awq", None]))
def test_any_block_is_a_form_or_one_sentence(block: dict[str, Any], method: str | None) -> None:
    said, form = "", None
    try:
        form = read_ready_made({**block, "quant_method": method}, "config.json")
    except Fault as fault:
        said = fault.message
    assert said == "" or said.startswith("config.json has quantized weights")
    assert form is None or (form.bits in (4, 8) and (form.group > 0 or form.group == -1))


def test_they_are_not_quantized_again(builder: Builder, tmp_path: Path) -> None:
    write_ready_made(tmp_path / "m", Form())
    run = builder("package", "--model", tmp_path / "m", "--quantize", "int8", "--out", tmp_path / "out")
    assert run.code == 2
    assert "quantized already" in run.err
