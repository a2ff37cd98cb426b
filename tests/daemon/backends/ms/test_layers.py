"""The layer API beyond TeleChat2: packings, biases, scales, rotary forms, experts, a tied head."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from contract.faults import Fault
from daemon.backends.ms.kernels import FloatArray
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.shape import DecoderShape
from tests.daemon.backends.ms.tiny_telechat2 import write_safetensors

HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCAB, ROTARY = 40, 4, 2, 12, 52, 97, 8
CONFIG = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": DIM,
    "intermediate_size": INNER,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "serving": {"network": "other.py"},
}
NETWORK = """
from mindspore import nn
from daemon.backends.ms.layers import *

LAYER_API = 1


class Network(nn.Cell):
    def __init__(self, config, device):
        super().__init__()
        shape = DecoderShape.from_config(config)
        self.embedding = Embedding(device, shape, "embed", scale=3.0)
        self.attention = AttentionBlock(
            device, shape, "norm1",
            [
                Tensor("wqkv", ("q", "k", "v"), groups=shape.kv_heads),
                Tensor("bqkv", ("q_bias", "k_bias", "v_bias"), groups=shape.kv_heads),
                Tensor("wo", ("o",)),
            ],
            AttentionOptions(rotary_dim=8, residual_scale=0.25),
        )
        self.feed_forward = FeedForward(
            device, shape, "norm2",
            [
                Tensor("gate_up", ("gate", "up")),
                Tensor("gate_bias", ("gate_bias",)),
                Tensor("up_bias", ("up_bias",)),
                Tensor("down", ("down",)),
            ],
            residual_scale=0.5,
        )
        self.head = LMHead(device, shape, "norm3", self.embedding, logit_scale=0.1)

    def rope_for(self, prompt_len):
        return 1000.0, 1.0

    def construct(self, tokens, step):
        x = self.embedding(tokens, step)
        x = self.attention(x, step)
        x = self.feed_forward(x, step)
        return self.head(x, step)
"""
Double = npt.NDArray[np.float64]
IDS = [int(token) for token in np.random.default_rng(0).integers(0, VOCAB, 29)]


def random_weights() -> dict[str, FloatArray]:
    rng = np.random.default_rng(3)
    group = (HEADS // KV_HEADS + 2) * DIM * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (VOCAB, HIDDEN),
        "norm1": (HIDDEN,),
        "norm2": (HIDDEN,),
        "norm3": (HIDDEN,),
        "wqkv": (group, HIDDEN),
        "bqkv": (group,),
        "wo": (HIDDEN, HEADS * DIM),
        "gate_up": (2 * INNER, HIDDEN),
        "gate_bias": (INNER,),
        "up_bias": (INNER,),
        "down": (HIDDEN, INNER),
    }
    return {
        name: rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5) for name, shape in shapes.items()
    }


def norm(x: Double, weight: FloatArray) -> Double:
    result: Double = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * weight
    return result


def silu(x: Double) -> Double:
    result: Double = x / (1 + np.exp(-x))
    return result


def rotate(x: Double) -> Double:
    half = ROTARY // 2
    angle = np.outer(np.arange(len(x)), 1000.0 ** (-np.arange(half) / half))[:, None, :]
    a, b = x[..., :half], x[..., half:ROTARY]
    turned = (a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), x[..., ROTARY:])
    return np.concatenate(turned, axis=-1)


Branch = Callable[[Double], Double]


def reference(weights: dict[str, FloatArray], ids: list[int], mixture: Branch | None = None) -> Double:
    """``mixture`` takes the place of the feed-forward."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    x = 3.0 * w["embed"][ids]
    group = HEADS // KV_HEADS
    packed = norm(x, weights["norm1"]) @ w["wqkv"].T + w["bqkv"]
    packed = packed.reshape(len(ids), KV_HEADS, group + 2, DIM)
    query = rotate(packed[:, :, :group].reshape(len(ids), HEADS, DIM))
    key, value = rotate(packed[:, :, group]), packed[:, :, group + 1]
    mixed = np.empty((len(ids), HEADS, DIM))
    for head in range(HEADS):
        scores = query[:, head] @ key[:, head // group].T / np.sqrt(DIM)
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, head] = shares / shares.sum(axis=1, keepdims=True) @ value[:, head // group]
    x = x + 0.25 * (mixed.reshape(len(ids), -1) @ w["wo"].T)
    normed = norm(x, weights["norm2"])
    wide = normed @ w["gate_up"].T
    gate, up = wide[:, :INNER] + w["gate_bias"], wide[:, INNER:] + w["up_bias"]
    branch = mixture(normed) if mixture else silu(gate) * up @ w["down"].T
    x = x + 0.5 * branch
    result: Double = 0.1 * (norm(x, weights["norm3"]) @ w["embed"].T)
    return result


def load(folder: Path, network: str = NETWORK, weights: dict[str, FloatArray] | None = None) -> ModelRunner:
    write_safetensors(folder / "model.safetensors", weights or random_weights())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "other.py").write_text(network)
    options = RunnerOptions(num_blocks=8, max_rows=32, max_logit_rows=32, threads=2)
    return ModelRunner.load(folder, options=options, progress=lambda fraction, what: None)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    loaded = load(tmp_path_factory.mktemp("other"))
    yield loaded
    loaded.close()


def test_another_family_is_the_reference_s(runner: ModelRunner) -> None:
    got = runner.execute([Segment(IDS, 0, [3, 5], 0, *runner.rope_for(29))])
    assert close(got, reference(random_weights(), IDS))


def test_a_stack_computes_what_its_blocks_do_one_by_one(tmp_path: Path, runner: ModelRunner) -> None:
    calls = "x = self.attention(x, step)\n        x = self.feed_forward(x, step)"
    made = "self.stack = Stack(device, shape, [self.attention, self.feed_forward])\n        self.head ="
    network = NETWORK.replace(calls, "x = self.stack(x, step)").replace("self.head =", made)
    network = network.replace("LAYER_API = 1", "LAYER_API = 2")
    expected = runner.execute([Segment(IDS, 0, [3, 5], 0, *runner.rope_for(29))])
    assert np.array_equal(logits(tmp_path, network, random_weights()), expected)


def test_a_stack_keeps_the_shape(tmp_path: Path) -> None:
    made = "self.stack = Stack(device, shape, [self.embedding])\n        self.head ="
    network = NETWORK.replace("x = self.attention(x, step)", "x = self.stack(x, step)")
    with pytest.raises(Fault, match="blocks that keep the shape only"):
        load(tmp_path, network.replace("self.head =", made))


def test_a_tied_head_shares_its_memory(runner: ModelRunner) -> None:
    table, projection, out, gate_up, down = 112 * 40, 96 * 40, 48 * 48, 2 * 64 * 40, 48 * 52
    assert runner.weight_bytes == 4 * (table + projection + out + gate_up + down)


def logits(folder: Path, network: str, weights: dict[str, FloatArray]) -> FloatArray:
    loaded = load(folder, network, weights)
    got = loaded.execute([Segment(IDS, 0, [3, 5], 0, *loaded.rope_for(29))]).copy()
    loaded.close()
    return got


def close(got: FloatArray, expected: Double) -> bool:
    return bool(np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max())


def test_adjacent_pairs_are_reordered_as_they_are_loaded(tmp_path: Path, runner: ModelRunner) -> None:
    """Weights and biases of q and k, also where a tensor holds v besides."""
    weights = random_weights()
    group = HEADS // KV_HEADS
    for name in ("wqkv", "bqkv"):
        heads = weights[name].reshape(KV_HEADS, group + 2, DIM, -1).copy()
        for first in range(ROTARY // 2):
            for place, source in ((2 * first, first), (2 * first + 1, first + ROTARY // 2)):
                heads[:, : group + 1, place] = weights[name].reshape(heads.shape)[:, : group + 1, source]
        weights[name] = heads.reshape(weights[name].shape)
    network = NETWORK.replace("rotary_dim=8", "rotary_dim=8, adjacent_pairs=True")
    expected = runner.execute([Segment(IDS, 0, [3, 5], 0, *runner.rope_for(29))])
    assert np.array_equal(logits(tmp_path, network, weights), expected)


def test_a_head_may_count_its_rows_as_of_length_one(tmp_path: Path) -> None:
    network = NETWORK.replace("logit_scale=0.1", "logit_scale=0.1, unit_rows=True")
    weights = random_weights()
    lengths = np.linalg.norm(weights["embed"].astype(np.float64), axis=1)
    assert close(logits(tmp_path, network, weights), reference(weights, IDS) / lengths)


def test_experts_take_the_place_of_the_feed_forward(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shapes = {"gate": (20, HIDDEN), "up": (20, HIDDEN), "down": (HIDDEN, 20), "down_bias": (HIDDEN,)}
    w = {
        f"e{expert}.{role}": rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5)
        for expert in range(4)
        for role, shape in shapes.items()
    }
    w["router"] = rng.standard_normal((4, HIDDEN), dtype=np.float32)

    def mixture(x: Double) -> Double:
        shares = np.exp(x @ w["router"].T.astype(np.float64))
        shares = np.where(shares >= np.sort(shares, axis=1)[:, 2:3], shares, 0)
        shares /= shares.sum(axis=1, keepdims=True)
        branches = [
            silu(x @ w[f"e{e}.gate"].T) * (x @ w[f"e{e}.up"].T) @ w[f"e{e}.down"].T + w[f"e{e}.down_bias"]
            for e in range(4)
        ]
        return sum((shares[:, e : e + 1] * branches[e] for e in range(4)), np.zeros_like(x))

    start, end = NETWORK.index("FeedForward("), NETWORK.index("self.head")
    experts = "[[Tensor(f'e{e}.{r}', (r,)) for r in ('gate', 'up', 'down', 'down_bias')] for e in range(4)]"
    options = "MoEOptions(active=2, inner=20, residual_scale=0.5)"
    block = f"MoE(device, shape, 'norm2', 'router', {experts}, {options})\n        "
    replaced = ("gate_up", "gate_bias", "up_bias", "down")
    plain = {name: values for name, values in random_weights().items() if name not in replaced}
    got = logits(tmp_path, NETWORK[:start] + block + NETWORK[end:], plain | w)
    assert close(got, reference(random_weights(), IDS, mixture))


def test_no_expert_can_be_active_where_there_is_none(tmp_path: Path) -> None:
    block = "MoE(device, shape, 'norm2', 'router', [], MoEOptions(active=1)); FeedForward("
    with pytest.raises(Fault, match="1 of 0 experts cannot be active"):
        load(tmp_path, NETWORK.replace("FeedForward(", block))


def test_head_norms_windows_and_factors_reach_the_kernels(tmp_path: Path) -> None:
    """What they compute is shown on the kernels; here, that the API sets them."""
    roles = "Tensor('qn', ('q_norm',)), Tensor('kn', ('k_norm',)), "
    norms = NETWORK.replace('Tensor("wo"', f'{roles}Tensor("wo"')
    window = norms.replace("rotary_dim=8", "rotary_dim=8, window=5")
    factors = window.replace("rotary_dim=8", "rotary_dim=8, rotary_factors=(1, 2, 4, 8)")
    weights = random_weights() | {"qn": np.full(DIM, 1.5, np.float32), "kn": np.ones(DIM, np.float32)}
    got = [logits(tmp_path, network, weights) for network in (norms, window, factors)]
    got.insert(0, reference(random_weights(), IDS).astype(np.float32))
    for before, after in pairwise(got):
        assert not np.allclose(before[5:], after[5:], rtol=1e-3)
    assert np.array_equal(got[1][:5], got[2][:5])


def test_a_role_the_block_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="gives wo the roles output; there are"):
        load(tmp_path, NETWORK.replace('Tensor("wo", ("o",))', 'Tensor("wo", ("output",))'))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_head": 8, "n_layer": 2, "ffn_hidden_size": 9, "layer_norm_epsilon": 1e-8}, (8, 8, 4, 9, 1e-8)),
        (
            {
                "num_attention_heads": 4,
                "num_layers": 2,
                "ffn_hidden_size": 9,
                "layernorm_epsilon": 1e-5,
                "kv_channels": 16,
                "multi_query_group_num": 2,
            },
            (4, 2, 16, 9, 1e-5),
        ),
    ],
)
def test_dimensions_have_many_names(
    config: dict[str, object], expected: tuple[int, int, int, int, float]
) -> None:
    shape = DecoderShape.from_config({"hidden_size": 32, "vocab_size": 50, "seq_length": 77, **config})
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.inner, shape.eps) == expected
    assert (shape.hidden, shape.layers, shape.vocab, shape.context) == (32, 2, 50, 77)
