"""Adapters in every form that training frameworks write, merged as numpy would."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from builder.adapters.adapter import Adapter, LowRank
from builder.adapters.naming import _floats, _Held, with_hf_names
from builder.adapters.read import read_adapter
from builder.checkpoints.layouts.families import LAYOUTS
from builder.conversion.subject import Subject, facts_of
from builder.families import FAMILIES
from builder.package import Order, package
from builder.progress import Progress
from builder.sources import Requested
from contract.faults import Fault
from tests.builder.checkpoints.arrays import write_torch_zip
from tests.builder.hf_models import LLAMA3, write_folder

RANK, ALPHA = 2, 6.0
MODULES = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "mlp.down_proj": (64, 96)}
R1_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "mlp.down_proj": "feed_forward.w2",
}
"""Of mindformers."""
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}


def halves() -> dict[str, tuple[Any, Any]]:
    """Module of layer 1 -> A and B."""
    random = np.random.default_rng(5)

    def made(*shape: int) -> Any:
        return random.standard_normal(shape).astype("<f4")

    return {module: (made(RANK, into), made(out, RANK)) for module, (out, into) in MODULES.items()}


def named(pattern: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Tensors by a pattern with {module} and {half}."""
    return {
        pattern.format(module=names[module] if names else module, half="ab"[index], Half="AB"[index]): values
        for module, pair in halves().items()
        for index, values in enumerate(pair)
    }


def write_yaml(folder: Path) -> None:
    pet = "pet_config: {pet_type: lora, lora_rank: 2, lora_alpha: 6}"
    (folder / "run.yaml").write_text(f"model:\n  model_config:\n    {pet}\n")


def peft_bin(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    tensors = named("base_model.model.model.layers.1.{module}.lora_{Half}.weight")
    write_torch_zip(folder / "adapter_model.bin", tensors)
    return folder


def xtuner(folder: Path) -> Path:
    tensors = named("llm.base_model.model.model.layers.1.{module}.lora_{Half}.default.weight")
    return write_torch_zip(folder / "iter_500.pth", tensors)


def mindpet(folder: Path) -> Path:
    write_yaml(folder)
    tensors = named("model.layers.1.{module}.mindpet_delta_lora_{half}", R1_NAMES)
    path = folder / "lora.ckpt"
    path.write_bytes(
        ckpt({**tensors, "adam_m.model.layers.1.x": np.ones(3, "<f4"), "epoch_num": np.ones(1, "<f4")})
    )
    return path


def mindformers(folder: Path) -> Path:
    save_file(named("model.layers.1.{module}.lora_{half}", R1_NAMES), folder / "lora.safetensors")
    write_yaml(folder)
    return folder


def ckpt(tensors: Mapping[str, Any]) -> bytes:
    """MindSpore's message, by hand."""

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def value(name: str, array: Any) -> bytes:
        dims = b"".join(varint(1 << 3) + varint(size) for size in array.shape)
        tensor = dims + field(2, b"Float32") + field(3, array.tobytes())
        return field(1, field(1, name.encode()) + field(2, tensor))

    return b"".join(value(name, array) for name, array in tensors.items())


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


@pytest.mark.parametrize("write", [peft_bin, xtuner, mindpet, mindformers], ids=lambda write: write.__name__)
def test_every_source_is_merged_as_numpy_merges_it(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "base", LLAMA3)
    (tmp_path / "lora").mkdir()
    path = write(tmp_path / "lora")
    alpha = ALPHA if write is xtuner else None
    requested = Requested(adapter=path, adapter_alpha=alpha)
    order = Order(model=str(tmp_path / "base"), requested=requested, out=tmp_path / "out")
    after = load_file(package(order, Progress(quiet=True)).path / "model.safetensors")
    before = load_file(tmp_path / "base" / "model.safetensors")
    expected = dict(before)
    for module, (a, b) in halves().items():
        expected[f"model.layers.1.{module}.weight"] = before[f"model.layers.1.{module}.weight"] + 3.0 * b @ a
    for name, values in expected.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@given(
    st.sampled_from(sorted(LAYOUTS.keys() & FAMILIES.keys())),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_an_adapter_under_mindformers_names_changes_the_same_rows(
    family_name: str, concatenated: bool, seed: int, data: st.DataObject
) -> None:
    """Renaming an adapter and merging it is merging it and converting the sum, however either packs."""
    family, layouts, random = FAMILIES[family_name], LAYOUTS[family_name], np.random.default_rng(seed)
    values = {family.heads: 4, family.kv_heads: 4 if family_name == "baichuan" else 2, "hidden_size": 8}
    values = {**values, "kv_channels": 2, "head_dim": 2}
    facts = facts_of(family, values)
    layout = layouts.r1_qkv if concatenated else layouts.r1
    key_rows = 2 * (facts.kv_heads or 0)
    rows = {"q": 8, "k": key_rows, "v": key_rows}
    changes: dict[str, LowRank] = {}
    for entry in layout.entries:
        if set(entry.parts) <= rows.keys() and data.draw(st.booleans()):
            out = sum(rows[part] for part in entry.parts)
            name = entry.pattern.format(layer=3, kind="weight", expert=0)
            a, b = (random.standard_normal(shape).astype("<f4") for shape in ((2, 8), (out, 2)))
            changes[name] = LowRank(a, b, 0.5)
    if not changes:
        return
    renamed = with_hf_names(Adapter("x", changes), Subject(family, values)).changes
    zeros = {
        entry.pattern.format(layer=3, kind="weight", expert=0): np.zeros(
            (sum(rows[part] for part in entry.parts), 8), "<f4"
        )
        for entry in layout.entries
        if set(entry.parts) <= rows.keys()
    }
    merged = {name: changes[name].merged(w, 0) if name in changes else w for name, w in zeros.items()}
    roles = layout.unpack({name: _Held(w) for name, w in merged.items()}, facts)
    expected = {name: _floats(view) for name, view in layouts.hf.pack(roles, facts).items()}
    for name, w in expected.items():
        got = renamed[name].merged(np.zeros_like(w), 0) if name in renamed else np.zeros_like(w)
        np.testing.assert_allclose(got, w, rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(renamed) <= set(expected)


BASE = Subject(FAMILIES["llama"], {})


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("name", ["iter_1.pth", "adapter_model.bin"])
def test_a_malicious_pickle_runs_nothing(name: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = write_torch_zip(tmp_path / name, {}, pickle.dumps({"w": Evil(trap)}, 2))
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(Fault, match="exec, which no checkpoint of weights needs; nothing was run"):
        read_adapter(tmp_path if name.endswith(".bin") else path, BASE, 1.0)
    assert not trap.exists()


def test_alpha_must_be_said_somewhere(tmp_path: Path) -> None:
    path = xtuner(tmp_path)
    with pytest.raises(Fault, match="does not say its alpha") as caught:
        read_adapter(path, BASE)
    assert "--adapter-alpha" in caught.value.hint
    (tmp_path / "run.yaml").write_text("model: {model_config: {pet_config: {lora_alpha: no}}}")
    with pytest.raises(Fault, match=r"lora_alpha is False"):
        read_adapter(path, BASE)


def test_whole_tensors_in_a_file_are_refused(tmp_path: Path) -> None:
    tensors = named("model.layers.1.{module}.lora_{half}", R1_NAMES)
    save_file({**tensors, "model.norm_out.weight": np.ones(3, "<f4")}, tmp_path / "lora.safetensors")
    with pytest.raises(Fault, match=r"also holds 1 whole tensors, such as model\.norm_out\.weight"):
        read_adapter(tmp_path / "lora.safetensors", BASE, 1.0)
    save_file({"model.norm_out.weight": np.ones(3, "<f4")}, tmp_path / "base.safetensors")
    with pytest.raises(Fault, match="holds no LoRA tensors"):
        read_adapter(tmp_path / "base.safetensors", BASE, 1.0)


@pytest.mark.parametrize("cut", [0, 3, 40, -1])
@pytest.mark.parametrize("write", [xtuner, mindpet], ids=lambda write: write.__name__)
def test_a_truncated_file_is_refused(write: Any, cut: int, tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Fault, match=path.name):
        read_adapter(path, BASE, 1.0)
