"""Quantized models: the published layout, the whole executor on them, and everything that can be wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.ms.kernels import FloatArray
from daemon.backends.ms.quantization import Scheme
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.weights import estimate
from tests.daemon.backends.ms import tiny_llama
from tests.daemon.backends.ms.quantized import (
    Array,
    change_config,
    config_of,
    quantized_tensors,
    write_quantized,
    write_tensors,
)
from tests.daemon.backends.ms.tiny_llama import QWEN2
from tests.daemon.backends.ms.tiny_telechat2 import CONFIG, Weights, random_weights, write_model
from tests.reference.telechat2_numpy import forward

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
DEMO = Path(__file__).resolve().parents[4] / "examples" / "telechat2_tiny"
IDS = [int(token) for token in np.random.default_rng(5).integers(0, CONFIG["vocab_size"], 60)]

SHORT = IDS[:32]
"""No longer than the model was trained for: rotary base 10000, as in ``segment``."""


def silent(fraction: float, what: str) -> None:
    """Progress nobody watches."""


OPTIONS = RunnerOptions(num_blocks=64, max_rows=256, max_logit_rows=256, threads=2)


def load(folder: Path, dtype: str = "auto", **options: Any) -> ModelRunner:
    return ModelRunner.load(folder, options=replace(OPTIONS, dtype=dtype, **options), progress=silent)


def segment(ids: list[int], first: int = 0, last: int | None = None, block: int = 0) -> Segment:
    table = range(block, block + len(ids) // 16 + 1)
    return Segment(ids[first:last], first, table, 0, 10000.0, 1.0)


def logits_of(folder: Path, dtype: str = "auto", ids: list[int] = IDS, **options: Any) -> FloatArray:
    runner = load(folder, dtype, **options)
    got = runner.execute([segment(ids)]).copy()
    runner.close()
    return got


@pytest.mark.parametrize(("activations", "error"), [("int8", 0.02), ("int7", 0.04)])
@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 128), (4, 32), (4, 64)])
def test_a_published_checkpoint_is_the_model_it_stands_for(
    tmp_path: Path, bits: int, group: int, activations: str, error: float
) -> None:
    exact = write_quantized(tmp_path, random_weights(), bits, group)
    expected = forward(exact, dict(CONFIG), SHORT)
    got = logits_of(tmp_path, ids=SHORT, activation_dtype=activations)
    # What is left are the activations, which are rounded: the weights themselves lose nothing.
    assert np.abs(got - expected).max() <= 3 * error * np.abs(expected).max()
    assert np.sqrt(np.mean((got - expected) ** 2)) <= error * np.std(expected)


def test_activations_of_fewer_bits_are_another_result(tmp_path: Path) -> None:
    """And ``auto`` is the one that is quicker on this processor."""
    write_quantized(tmp_path, random_weights(), 8, 32)
    seen = {}
    for activations in ("auto", "int8", "int7"):
        runner = load(tmp_path, activation_dtype=activations)
        seen[activations] = runner.activation_dtype, runner.execute([segment(SHORT)]).copy()
        runner.close()
    assert (seen["int8"][0], seen["int7"][0]) == ("int8", "int7")
    assert not np.array_equal(seen["int8"][1], seen["int7"][1])
    assert np.array_equal(seen["auto"][1], seen[seen["auto"][0]][1])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_token_depends_on_neither_batch_nor_chunks_nor_threads(tmp_path: Path, bits: int) -> None:
    write_quantized(tmp_path, random_weights(), bits, 32)
    runner = load(tmp_path)
    expected = runner.execute([segment(IDS)]).copy()
    for cuts in ((0, 1, 2, 3, 60), (0, 17, 18, 47, 60), tuple(range(61))):
        pieces = [runner.execute([segment(IDS, a, b)]).copy() for a, b in pairwise(cuts)]
        assert np.array_equal(np.concatenate(pieces), expected)
    others = [segment(IDS[:length], block=8 * place) for place, length in ((1, 5), (2, 33), (3, 1))]
    together = runner.execute([others[0], segment(IDS), *others[1:]])
    assert np.array_equal(together[5:65], expected)
    runner.close()
    assert np.array_equal(logits_of(tmp_path, threads=1), expected)


@pytest.mark.parametrize(
    ("dtype", "activations", "error"),
    [("int8", "int8", 0.03), ("int8", "int7", 0.045), ("int4", "auto", 0.4)],
)
def test_a_float_checkpoint_is_rounded_when_loaded(
    tmp_path: Path, dtype: str, activations: str, error: float
) -> None:
    write_model(tmp_path)
    expected = logits_of(tmp_path)
    difference = logits_of(tmp_path, dtype, activation_dtype=activations) - expected
    assert np.sqrt(np.mean(difference**2)) <= error * np.std(expected)


def in_eight_bits(matrix: FloatArray) -> FloatArray:
    """What the kernels round a matrix of at most 64 columns to: a group a row, its scale in bfloat16."""
    wide = np.abs(matrix).max(1, keepdims=True) / np.float32(127)
    bits = wide.view(np.uint32)
    step = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    rounded: FloatArray = np.clip(np.rint(matrix * (1 / step)), -128, 127).astype(np.float32) * step
    return rounded


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_shared_head_is_rounded_together_with_the_embedding(tmp_path: Path, dtype: str) -> None:
    config = {**QWEN2, "tie_word_embeddings": True}
    weights = tiny_llama.random_weights(config)
    tiny_llama.write_model(tmp_path / "shared", config, weights)
    table = in_eight_bits(weights["model.embed_tokens.weight"])
    own = weights | {"model.embed_tokens.weight": table, "lm_head.weight": table}
    tiny_llama.write_model(tmp_path / "own", {**config, "tie_word_embeddings": False}, own)
    shared, apart = load(tmp_path / "shared", dtype), load(tmp_path / "own", dtype)
    assert np.array_equal(shared.execute([segment(IDS)]), apart.execute([segment(IDS)]))
    padded_rows = 14 * 16
    assert apart.weight_bytes - shared.weight_bytes == 4 * padded_rows * table.shape[1]
    needs = [estimate(tmp_path / name, dtype).weight_bytes for name in ("own", "shared")]
    assert needs[0] - needs[1] == 4 * table.size
    as_stored, rounded = load(tmp_path / "shared"), load(tmp_path / "shared", "bfloat16")
    assert rounded.weight_bytes * 2 == as_stored.weight_bytes, "floats share the table"


def write_float_head(folder: Path, head: FloatArray) -> Weights:
    """A model of 4 bits with this head, which stays in floats; the weights it stands for."""
    tensors, exact = quantized_tensors(random_weights(), 4, 32)
    for ending in ("_packed", "_scale", "_shape"):
        del tensors[f"lm_head.weight{ending}"]
    tensors["lm_head.weight"] = exact["lm_head.weight"] = head
    write_model(folder, quantization_config=config_of(4, 32))
    write_tensors(folder / "model.safetensors", tensors)
    return exact


def test_a_head_in_floats_gets_eight_bits_in_a_quantized_model(tmp_path: Path) -> None:
    exact = write_float_head(tmp_path, head := random_weights()["lm_head.weight"])
    expected = forward(exact, dict(CONFIG), SHORT)
    got, need = {}, {}
    for dtype, error in (("stored", 0.02), ("auto", 0.025), ("int8", 0.025)):
        runner = load(tmp_path, head_dtype=dtype)
        got[dtype] = runner.execute([segment(SHORT)]).copy()
        need[dtype] = estimate(tmp_path, head_dtype=dtype).weight_bytes
        assert 0.6 * runner.weight_bytes <= need[dtype] <= 1.2 * runner.weight_bytes
        runner.close()
        assert np.sqrt(np.mean((got[dtype] - expected) ** 2)) <= error * np.std(expected)
    assert np.array_equal(got["auto"], got["int8"])
    scales = 2 * head.shape[0]
    assert need["stored"] - need["auto"] == 3 * head.size - scales


def test_a_model_of_floats_may_have_its_head_in_eight_bits(tmp_path: Path) -> None:
    write_model(tmp_path)
    stored, rounded = logits_of(tmp_path), logits_of(tmp_path, head_dtype="int8")
    assert 0 < np.sqrt(np.mean((rounded - stored) ** 2)) <= 0.015 * np.std(stored)
    assert np.array_equal(logits_of(tmp_path, head_dtype="stored"), stored)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_head_that_is_rounded_must_be_finite(tmp_path: Path, value: float) -> None:
    head = random_weights()["lm_head.weight"].copy()
    head[3, 5] = value
    write_float_head(tmp_path, head)
    with pytest.raises(Fault, match=r"lm_head.weight in model.safetensors holds 1 infinite or NaN"):
        load(tmp_path)


NAME = "transformer.h.1.mlp.up_proj.weight"
Tensors = dict[str, Array]


def lose(ending: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{NAME}{ending}")


def put(ending: str, values: Array) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{NAME}{ending}": values})


def unquantize(tensors: Tensors) -> None:
    for ending in ("_packed", "_scale", "_shape"):
        del tensors[f"{NAME}{ending}"]
    tensors[NAME] = np.zeros((72, 48), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose("_scale"), f"lacks {NAME}_scale"),
        (lose("_shape"), f"lacks {NAME}_shape"),
        (put("_packed", np.zeros((72, 5), np.int32)), r"has shape \[72, 5\], expected \[72, 6\]"),
        (put("_packed", np.zeros((72, 6), np.float32)), f"{NAME}_packed in model.safetensors is float32"),
        (put("_scale", np.zeros((72, 1), np.float32)), r"_scale .* has shape \[72, 1\], expected \[72, 2\]"),
        (put("_scale", np.full((72, 2), np.nan, np.float32)), f"{NAME}_scale .* 144 infinite or NaN"),
        (put("_shape", np.array([48, 72])), r"_shape .* says \[48, 72\], expected \[72, 48\]"),
        (put("_g_idx", np.zeros(48, np.int32)), f"{NAME}_g_idx .* activation ordering"),
        (put("_zero_point", np.zeros((72, 2), np.int32)), f"{NAME}_zero_point .* asymmetrically"),
        (unquantize, f"gate_proj.weight is quantized and {NAME} is not"),
    ],
)
def test_damaged_checkpoints_are_faults(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    tensors, _ = quantized_tensors(random_weights(), 4, 32)
    change(tensors)
    write_model(tmp_path, quantization_config=config_of(4, 32))
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(Fault, match=message) as caught:
        load(tmp_path)
    assert caught.value.kind is FaultKind.INVALID_MODEL


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of(4, 48), "group_size 48"),
        (config_of(3, 32), "num_bits 3"),
        (config_of(4, 32, symmetric=False), "symmetric False"),
        (config_of(4, 32, strategy="channel"), "strategy 'channel'"),
        (config_of(4, 32, actorder="group"), "actorder 'group'"),
        (config_of(4, 32, type="float"), "type 'float'"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "format 'int-quantized'"),
        ({**config_of(4, 32), "config_groups": {}}, "0 different config_groups"),
        ({**config_of(4, 32), "config_groups": {"group_0": {}}}, "weights None"),
    ],
)
def test_other_schemes_are_faults_with_a_remedy(config: dict[str, Any], message: str) -> None:
    with pytest.raises(Fault, match=message) as caught:
        Scheme.from_config({"quantization_config": config})
    assert "quantize the model again" in (caught.value.hint or "")


def test_what_was_quantized_cannot_become_something_else(tmp_path: Path) -> None:
    write_quantized(tmp_path, random_weights(), 4, 32)
    with pytest.raises(Fault, match="weights of 4 bits, which cannot become int8"):
        load(tmp_path, "int8")
    change_config(tmp_path)
    with pytest.raises(Fault, match="no quantization_config"):
        load(tmp_path)


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 32)])
def test_memory_is_known_before_loading(tmp_path: Path, bits: int, group: int) -> None:
    write_quantized(tmp_path / "stored", random_weights(), bits, group)
    write_model(tmp_path / "float")
    for folder, dtype in (("stored", "auto"), ("float", f"int{bits}"), ("float", "auto")):
        runner = load(tmp_path / folder, dtype)
        need = estimate(tmp_path / folder, dtype)
        runner.close()
        # Small matrices are padded by up to a half; the estimate counts vectors, the runner does not.
        assert 0.6 * runner.weight_bytes <= need.weight_bytes <= 1.2 * runner.weight_bytes


def demo_folder(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(DEMO / "model.safetensors")
    networks = Path(__file__).resolve().parents[4] / "daemon" / "backends" / "ms" / "networks"
    (folder / "telechat2.py").symlink_to(networks / "telechat2.py")
    limits = {"max_seq_len": 1024, "max_input_tokens": 1023}
    config = json.loads((DEMO / "config.json").read_text("utf-8"))
    config["serving"] = {"format_version": 1, "backend": "ms", "network": "telechat2.py", "limits": limits}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def demo_questions(every: int) -> list[list[int]]:
    """Held-out questions with their answers, as token ids."""
    spec = importlib.util.spec_from_file_location("demo_prompts", DEMO / "prompts.py")
    assert spec is not None
    assert spec.loader is not None
    prompts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prompts)
    tokenizer = prompts.Tokenizer(DEMO / "tokenizer.model")
    sequences = []
    for line in (DEMO / "heldout.jsonl").read_text("utf-8").splitlines()[::every]:
        question = json.loads(line)
        turns = [prompts.Turn(**turn) for turn in question["turns"]]
        parts = prompts.segments(question["form"], turns, question["system"])
        sequences.append([token for part in parts for token in tokenizer.encode(part.text)])
    return sequences


@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.99), ("int4", 0.95)])
def test_the_demo_model_chooses_the_same_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, least: float
) -> None:
    sequences = demo_questions(every=8)
    chosen = {}
    for wanted in ("float32", dtype):
        (tmp_path / wanted).mkdir()
        runner = load(demo_folder(tmp_path / wanted), wanted)
        chosen[wanted] = np.concatenate([runner.execute([segment(ids)]).argmax(1) for ids in sequences])
        runner.close()
    agreement = float(np.mean(chosen["float32"] == chosen[dtype]))
    with capsys.disabled():
        print(f" {dtype}: {agreement:.2%} of {chosen[dtype].size} tokens as float32 ", end="")  # noqa: T201
    assert agreement >= least
