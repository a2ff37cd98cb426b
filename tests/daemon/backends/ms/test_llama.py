"""LLaMA and Qwen2 in the engine, against an oracle in plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.package import Order, package
from builder.progress import Progress
from contract.faults import Fault
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from tests.builder.hf_models import LLAMA3, QWEN, write_folder
from tests.daemon.backends.ms.tiny_llama import LLAMA, QWEN2, random_weights, write_model
from tests.reference.llama_numpy import forward

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
OPTIONS = RunnerOptions(num_blocks=16, max_rows=96, max_logit_rows=96, threads=2)

MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama with shared heads": LLAMA,
    "llama with a head for each": {**LLAMA, "num_key_value_heads": 6},
    "llama with one key head": {**LLAMA, "num_key_value_heads": 1},
    "llama 3: rope base": {**LLAMA, "rope_theta": 500000.0, "rms_norm_eps": 1e-6},
    "llama, tied": {**LLAMA, "tie_word_embeddings": True},
    "llama with biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama with wide heads": {**LLAMA, "head_dim": 16},
    "qwen2": {**QWEN2, "rope_theta": 1000000.0},
    "qwen2, tied": {**QWEN2, "rope_theta": 1000000.0, "tie_word_embeddings": True},
}


@contextmanager
def running(folder: Path) -> Iterator[ModelRunner]:
    runner = ModelRunner.load(folder, options=OPTIONS, progress=lambda fraction, what: None)
    try:
        yield runner
    finally:
        runner.close()


def logits(runner: ModelRunner, ids: list[int], cut: int = 0) -> Any:
    """Of the whole sequence, computed at once or in two steps."""
    base, scale = runner.rope_for(len(ids))
    parts = [(0, cut), (cut, len(ids))] if cut else [(0, len(ids))]
    blocks = [3, 0, 9, 4, 1, 2]
    steps = [Segment(ids[first:last], first, blocks, 0, base, scale) for first, last in parts]
    return np.concatenate([runner.execute([step]).copy() for step in steps])


@pytest.mark.parametrize("config", MODELS.values(), ids=list(MODELS))
def test_logits_are_the_oracle_s(tmp_path: Path, config: Mapping[str, Any]) -> None:
    weights = random_weights(config)
    ids = [int(token) for token in np.random.default_rng(1).integers(0, config["vocab_size"], 77)]
    expected = forward(weights, config, ids)
    with running(write_model(tmp_path, config, weights)) as runner:
        got = logits(runner, ids)
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
        assert np.array_equal(logits(runner, ids, cut=33), got)


def test_every_switch_of_the_oracle_matters() -> None:
    """An oracle that ignored a switch would prove nothing about it."""
    ids = list(range(3, 43))
    plain = forward(random_weights(LLAMA), LLAMA, ids)
    for change in ({"rope_theta": 500000.0}, {"tie_word_embeddings": True}, {"rms_norm_eps": 0.5}):
        assert not np.allclose(forward(random_weights(LLAMA), {**LLAMA, **change}, ids), plain)
    weights = random_weights(QWEN2)
    bare = {name: values for name, values in weights.items() if not name.endswith(".bias")}
    assert not np.allclose(forward(weights, QWEN2, ids), forward(bare, QWEN2, ids))


@pytest.mark.parametrize(
    ("config", "lost"),
    [(LLAMA, "lm_head.weight"), (QWEN2, "model.layers.1.self_attn.k_proj.bias")],
    ids=["head", "bias"],
)
def test_a_lost_tensor_fails_the_load(tmp_path: Path, config: Mapping[str, Any], lost: str) -> None:
    weights = random_weights(config)
    del weights[lost]
    folder = write_model(tmp_path, config, weights)
    with pytest.raises(Fault, match=f"lacks {lost}"), running(folder):
        pass


@pytest.mark.parametrize("config", [LLAMA3, QWEN], ids=["llama", "qwen2"])
def test_a_packaged_folder_is_served(
    tmp_path: Path, config: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "model", config)
    built = package(Order(model=str(folder), out=tmp_path / "out"), Progress(quiet=True))
    ids = [int(token) for token in np.random.default_rng(2).integers(0, config["vocab_size"], 50)]
    expected = forward(random_weights(config), config, ids)
    with running(built.path) as runner:
        got = logits(runner, ids)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
