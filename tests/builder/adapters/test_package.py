"""``builder package --adapter``. That the arithmetic is PEFT's is shown in tests/builder/engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from builder.adapters.adapter import LowRank
from builder.package import Order, Result, package
from builder.progress import Progress
from builder.sources import Requested
from contract.faults import Fault
from tests.builder.hf_models import LLAMA3, write_folder

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "somebody/base"}
MODULE = "model.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{MODULE}.lora_{part}.weight" for part in "AB")
Make = Callable[..., Path]


def tensors() -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {
        A: random.standard_normal((2, 64)).astype(np.float32),
        B: random.standard_normal((64, 2)).astype(np.float32),
    }


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes an adapter's folder; ``change`` edits the config, ``replaced`` the tensors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "base", LLAMA3)

    def write(change: Mapping[str, Any] = {}, replaced: Mapping[str, Any] = {}) -> Path:
        folder = tmp_path / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **change}))
        merged = {**tensors(), **replaced}
        save_file({k: v for k, v in merged.items() if v is not None}, folder / "adapter_model.safetensors")
        return folder

    return write


def build(adapter: Path, **options: Any) -> Result:
    order = Order(
        model=str(adapter.parent / "base"),
        requested=Requested(adapter=adapter),
        out=adapter.parent / "out",
        **options,
    )
    return package(order, Progress(quiet=True))


def test_only_the_adapted_matrix_changes(make: Make, tmp_path: Path) -> None:
    built = build(make())
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", built.path))
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == [f"{MODULE}.weight"]
    parts = tensors()
    expected = before[changed[0]] + 2.0 * parts[B] @ parts[A]
    np.testing.assert_allclose(after[changed[0]], expected, rtol=1e-5, atol=1e-6)
    assert any("merged the adapter adapter" in note for note in built.plan.notes)


def test_the_same_adapter_again_is_already_built_and_another_is_not(make: Make) -> None:
    assert build(make()).status == "built"
    assert build(make()).status == "already_built"
    other = make(replaced={A: tensors()[A] + 1})
    assert build(other).path.name == "2"


def test_an_adapter_is_merged_before_quantizing(make: Make, tmp_path: Path) -> None:
    plain = build(make(), name="plain")
    quantized = build(make(), name="quantized", quantize="int8", group_size=32)
    again = package(
        Order(
            model=str(as_source(plain.path, tmp_path)),
            name="two_steps",
            out=tmp_path / "out",
            quantize="int8",
            group_size=32,
        ),
        Progress(quiet=True),
    )
    one, two = (load_file(result.path / "model.safetensors") for result in (quantized, again))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def as_source(version: Path, tmp_path: Path) -> Path:
    """A packaged folder as a publisher's again."""
    folder = tmp_path / "merged"
    shutil.copytree(tmp_path / "base", folder)
    shutil.copy(version / "model.safetensors", folder)
    return folder


@pytest.mark.parametrize(
    ("change", "replaced", "words"),
    [
        ({}, {B: None}, "lacks lora_B"),
        ({}, {A: np.ones((3, 64), np.float32)}, "do not fit together"),
        ({"r": 3}, {}, "has rank 2, its config says 3"),
        ({}, {A: np.ones((2, 32), np.float32)}, "changes a matrix of [64, 32], the model's has [64, 64]"),
        ({}, {A: np.full((2, 64), np.nan, np.float32)}, "infinite or NaN"),
        ({}, {A: np.ones((2, 64), np.int32)}, "adapters hold float tensors"),
        (
            {},
            {"base_model.model.transformer.h.0.x.weight": np.ones(3, np.float32)},
            "trained on somebody/base",
        ),
        ({}, {A: None, B: None}, "changes nothing"),
        ({"init_lora_weights": "pissa"}, {}, "pissa"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    make: Make, change: Mapping[str, Any], replaced: Mapping[str, Any], words: str
) -> None:
    adapter = make(change, replaced)
    with pytest.raises(Fault) as caught:
        build(adapter)
    assert words in str(caught.value)
    assert not (adapter.parent / "out").exists()


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_truncated_adapter_is_refused(make: Make, cut: int) -> None:
    adapter = make()
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Fault, match=r"adapter_model\.safetensors"):
        build(adapter)


def test_a_quantized_base_is_refused(make: Make, tmp_path: Path) -> None:
    adapter = make()
    quantized = package(
        Order(model=str(tmp_path / "base"), name="q", out=tmp_path / "out", quantize="int8"),
        Progress(quiet=True),
    )
    order = Order(
        model=str(quantized.path), name="r", requested=Requested(adapter=adapter), out=tmp_path / "out"
    )
    with pytest.raises(Fault, match="cannot be merged into quantized weights"):
        package(order, Progress(quiet=True))


@given(rows=st.integers(1, 9), cut=st.integers(0, 9), rank=st.integers(1, 4), with_lengths=st.booleans())
def test_rows_are_merged_alike_however_they_are_cut(
    rows: int, cut: int, rank: int, with_lengths: bool
) -> None:
    random = np.random.default_rng(rows + 10 * cut)
    weights, a, b = (
        random.standard_normal(shape).astype(np.float32) for shape in ((rows, 5), (rank, 5), (rows, rank))
    )
    lengths = random.random(rows).astype(np.float32) if with_lengths else None
    change = LowRank(a, b, 0.5, lengths)
    parts = [change.merged(weights[:cut], 0), change.merged(weights[cut:], min(cut, rows))]
    np.testing.assert_allclose(np.concatenate(parts), change.merged(weights, 0), rtol=1e-5, atol=1e-6)
    if lengths is not None:
        np.testing.assert_allclose(np.linalg.norm(change.merged(weights, 0), axis=1), lengths, rtol=1e-4)
