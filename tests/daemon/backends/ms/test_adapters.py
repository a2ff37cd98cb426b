"""Adapters served beside the weights, against the same adapters merged into them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from builder.families import family_of_config
from contract.faults import Fault
from daemon.backends.ms.kernels import FloatArray
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from tests.daemon.backends.ms.test_architectures import write_model
from tests.daemon.backends.ms.tiny_telechat2 import write_safetensors
from tests.reference.architectures import CASES, Case, Weights, prompt, random_weights

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
NAMES = [
    "llama3",
    "qwen2.5, tied",
    "internlm2.5",
    "chatglm2",
    "baichuan2, six heads",
    "telechat2, shared heads",
    "fm9g",
]
OPTIONS = RunnerOptions(num_blocks=32, max_rows=192, max_logit_rows=192, threads=2)
IDS = list(range(7, 37))


def modules_of(case: Case) -> list[str]:
    """Linear layers that adapters may change while a model is served."""
    family = family_of_config(case.config, "the test")
    names = [module for module, _ in family.linear_modules(case.config)]
    return [name for name in names if not (name == "lm_head" and family.name == "baichuan")]


def random_adapter(case: Case, seed: int, rank: int = 3) -> dict[str, FloatArray]:
    """PEFT's tensors for every module."""
    random, weights = np.random.default_rng(seed), random_weights(case.config)
    tensors = {}
    for module in modules_of(case):
        out, into = weights[f"{module}.weight"].shape
        for part, shape in (("A", (rank, into)), ("B", (out, rank))):
            values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
            tensors[f"base_model.model.{module}.lora_{part}.weight"] = values
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, Any], dtype: str | None = None, **config: Any) -> Path:
    folder.mkdir()
    path = folder / "adapter_model.safetensors"
    if dtype is None:
        save_file(dict(tensors), path)
    else:
        write_safetensors(path, dict(tensors), dtype)
    text = json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6, **config})
    (folder / "adapter_config.json").write_text(text)
    return folder


def merged(case: Case, tensors: Mapping[str, FloatArray], scale: float) -> Weights:
    weights = random_weights(case.config)
    for module in modules_of(case):
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + np.float32(scale) * (b @ a)
    return weights


def load(folder: Path) -> ModelRunner:
    return ModelRunner.load(folder, options=OPTIONS, progress=lambda fraction, what: None)


def segment(runner: ModelRunner, ids: list[int], first_block: int, adapter: int = 0) -> Segment:
    base, scale = runner.rope_for(len(ids))
    return Segment(ids, 0, range(first_block, first_block + 4), 0, base, scale, adapter)


@pytest.mark.parametrize("name", NAMES)
def test_unmerged_equals_merged(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (tmp_path / "base").mkdir()
    (tmp_path / "merged").mkdir()
    tensors = random_adapter(case, seed=1)
    folder = write_adapter(tmp_path / "adapter", tensors)
    write_model(tmp_path / "base", case)
    write_safetensors(
        write_model(tmp_path / "merged", case) / "model.safetensors", merged(case, tensors, 2.0)
    )
    ids = prompt(int(case.config.get("padded_vocab_size") or case.config["vocab_size"]), 45)
    runner = load(tmp_path / "merged")
    expected = runner.execute([segment(runner, ids, 0)]).copy()
    runner.close()
    runner = load(tmp_path / "base")
    adapter, taken = runner.load_adapter(folder)
    plain = runner.execute([segment(runner, ids, 0)]).copy()
    got = runner.execute([segment(runner, ids, 4, adapter)]).copy()
    runner.close()
    assert taken > 0
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(plain - expected).max() > 0.05 * np.abs(expected).max(), "the adapter changes nothing"


def test_a_head_in_eight_bits_may_be_changed(tmp_path: Path) -> None:
    case = CASES["llama3"]
    names = [f"base_model.model.lm_head.lora_{part}.weight" for part in "AB"]
    tensors = random_adapter(case, seed=3)
    folder = write_adapter(tmp_path / "adapter", {name: tensors[name] for name in names})
    write_model(tmp_path, case)
    added = []
    for head_dtype in ("stored", "int8"):
        options = replace(OPTIONS, head_dtype=head_dtype)
        runner = ModelRunner.load(tmp_path, options=options, progress=lambda fraction, what: None)
        adapter, _ = runner.load_adapter(folder)
        plain = runner.execute([segment(runner, IDS, 0)]).copy()
        added.append(runner.execute([segment(runner, IDS, 4, adapter)]) - plain)
        runner.close()
    assert np.abs(added[1] - added[0]).max() <= 1e-4 * np.abs(added[0]).max()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return load(write_model(tmp_path_factory.mktemp("llama"), CASES["llama3"]))


def test_adapters_mix_in_one_step_and_change_nobody_else(llama: ModelRunner, tmp_path: Path) -> None:
    case = CASES["llama3"]
    adapters = [0]
    for seed in (1, 2):
        folder = write_adapter(tmp_path / str(seed), random_adapter(case, seed))
        adapters.append(llama.load_adapter(folder)[0])
    prompts = [prompt(211, length) for length in (1, 17, 30, 2, 41)]
    chosen = [adapters[i] for i in (1, 0, 2, 2, 1)]
    alone = [
        llama.execute([segment(llama, ids, 0, adapter)]).copy()
        for ids, adapter in zip(prompts, chosen, strict=True)
    ]
    together = [
        segment(llama, ids, 4 * place, adapter)
        for place, (ids, adapter) in enumerate(zip(prompts, chosen, strict=True))
    ]
    assert np.array_equal(llama.execute(together), np.concatenate(alone))
    for adapter in adapters[1:]:
        llama.free_adapter(adapter)
    assert np.array_equal(llama.execute([segment(llama, prompts[1], 0)]), alone[1])
    with pytest.raises(Fault, match="no such adapter"):
        llama.execute([segment(llama, prompts[0], 0, adapters[1])])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_formats_patterns_and_single_modules(llama: ModelRunner, tmp_path: Path, dtype: str) -> None:
    """Two of the modules that one packed matrix holds, of different ranks and scales."""
    case, random = CASES["llama3"], np.random.default_rng(5)
    prefix = "model.layers.1"
    sizes = {f"{prefix}.self_attn.k_proj": (32, 64, 2, 3.0), f"{prefix}.mlp.up_proj": (96, 64, 5, 0.8)}
    tensors: dict[str, Any] = {}
    weights = random_weights(case.config)
    for module, (out, into, rank, scale) in sizes.items():
        shapes = ((rank, into), (out, rank))  # numbers that every format has
        a, b = (random.integers(-8, 9, shape).astype(np.float32) / 8 for shape in shapes)
        tensors |= {
            f"base_model.model.{module}.lora_{part}.weight": half
            for part, half in zip("AB", (a, b), strict=True)
        }
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + np.float32(scale) * (b @ a)
    folder = write_adapter(
        tmp_path / "a",
        tensors,
        dtype,
        lora_alpha=4,
        rank_pattern={"k_proj": 2, "up_proj": 5},
        alpha_pattern={"k_proj": 6},
    )
    (tmp_path / "merged").mkdir()
    other = write_model(tmp_path / "merged", case)
    write_safetensors(other / "model.safetensors", weights)
    ids = prompt(211, 20)
    runner = load(other)
    expected = runner.execute([segment(runner, ids, 0)]).copy()
    runner.close()
    got = llama.execute([segment(llama, ids, 0, llama.load_adapter(folder)[0])])
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


Edit = Callable[[dict[str, Any]], Any]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_A.weight"), "lacks lora_A"),
        (
            lambda t: t.update({f"{FIRST}.lora_A.weight": np.ones((3, 32), np.float32)}),
            r"\[64, 32\]; it is \[64, 64\]",
        ),
        (
            lambda t: t.update({f"{FIRST}.lora_A.weight": np.ones((2, 64), np.float32)}),
            "its config says rank 3",
        ),
        (
            lambda t: t.update({f"{FIRST}.lora_B.weight": np.full((64, 3), np.inf, np.float32)}),
            "infinite or NaN",
        ),
        (
            lambda t: t.update({f"{FIRST}.lora_magnitude_vector": np.ones(64, np.float32)}),
            "merge it into the weights",
        ),
        (lambda t: t.update({"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}), "merge it"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": np.ones((3, 64), np.int32)}), "matrices of floats"),
        (
            lambda t: t.update(
                {f"base_model.model.x.lora_{p}.weight": np.ones((3, 3), np.float32) for p in "AB"}
            ),
            "take an adapter of this model",
        ),
        (lambda t: t.clear(), "changes nothing"),
    ],
)
def test_what_cannot_be_served_is_refused(llama: ModelRunner, tmp_path: Path, edit: Edit, words: str) -> None:
    tensors: dict[str, Any] = dict(random_adapter(CASES["llama3"], 1))
    edit(tensors)
    with pytest.raises(Fault, match=words):
        llama.load_adapter(write_adapter(tmp_path / "adapter", tensors))


def test_a_truncated_file_is_refused(llama: ModelRunner, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", random_adapter(CASES["llama3"], 1))
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Fault, match="adapter_model"):
            llama.load_adapter(folder)
