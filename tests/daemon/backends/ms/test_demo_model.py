"""The demo model's real weights: against the independent reference, in pieces, and in company."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.telechat2_numpy import forward, load_safetensors_float32

pytest.importorskip("mindspore", reason="MindSpore is not installed: pip install -e '.[ms]'")

from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment

SOURCES = Path(__file__).resolve().parents[4] / "examples" / "telechat2_tiny"
NETWORK = Path(__file__).resolve().parents[4] / "daemon" / "backends" / "ms" / "networks" / "telechat2.py"
TOLERANCE = 1e-4
LENGTHS = (1, 7, 40, 129)


@functools.cache
def config() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((SOURCES / "config.json").read_text("utf-8"))
    return read


@functools.cache
def reference_logits(length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return forward(load_safetensors_float32(SOURCES / "model.safetensors"), config(), list(prompt(length)))


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    ids = np.random.default_rng(seed).integers(18, config()["vocab_size"], length)
    return tuple(int(token) for token in ids)


def segment(ids: tuple[int, ...], start: int, count: int, first_block: int) -> Segment:
    """``count`` tokens from ``start`` that all want logits, in blocks of their own."""
    table = list(range(first_block, first_block + len(ids) // 16 + 1))
    return Segment(ids[start : start + count], start, table, 0, 10000.0, 1.0)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("demo")
    (directory / "model.safetensors").symlink_to(SOURCES / "model.safetensors")
    (directory / "telechat2.py").symlink_to(NETWORK)
    serving = {
        "format_version": 1,
        "backend": "ms",
        "network": "telechat2.py",
        "layer_api": 2,
        "limits": {"max_seq_len": 1024, "max_input_tokens": 1023},
    }
    (directory / "config.json").write_text(json.dumps(config() | {"serving": serving}), "utf-8")
    options = RunnerOptions(num_blocks=64, max_rows=256, max_logit_rows=256, threads=2, kv_dtype="float32")
    loaded = ModelRunner.load(directory, options=options, progress=lambda _share, _text: None)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_equal_the_independent_reference(runner: ModelRunner, length: int) -> None:
    logits = runner.execute([segment(prompt(length), 0, length, 0)])
    expected = reference_logits(length)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, f"max|dlogit| / max|logit| = {error:.2e}"


@pytest.mark.parametrize("chunks", [(40,), (1,) * 40, (7, 20, 1, 12)])
def test_prefill_then_decode_equals_the_full_forward(runner: ModelRunner, chunks: tuple[int, ...]) -> None:
    ids = prompt(40)
    full = runner.execute([segment(ids, 0, 40, 0)]).copy()
    start = 0
    for count in chunks:
        rows = runner.execute([segment(ids, start, count, 8)])
        np.testing.assert_array_equal(rows, full[start : start + count])
        start += count


def test_a_batch_equals_its_members_one_by_one(runner: ModelRunner) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate((3, 17, 40, 64, 5, 33))]
    alone = [runner.execute([segment(ids, 0, len(ids), 0)]).copy() for ids in prompts]
    blocks = np.cumsum([0, *(len(ids) // 16 + 1 for ids in prompts)])
    together = runner.execute(
        [segment(ids, 0, len(ids), int(block)) for ids, block in zip(prompts, blocks, strict=False)]
    )
    np.testing.assert_array_equal(together, np.concatenate(alone))
