"""The whole executor on a tiny model: against the NumPy reference, and bit for bit against itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.ms import runner as runner_module
from daemon.backends.ms.kernels import FloatArray
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.weights import estimate
from tests.daemon.backends.ms.tiny_telechat2 import CONFIG, Weights, random_weights, write_model
from tests.reference.telechat2_numpy import forward

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
OPTIONS = RunnerOptions(num_blocks=64, max_rows=96, max_logit_rows=96, threads=2)


def silent(fraction: float, what: str) -> None:
    """Progress nobody watches."""


def load(folder: Path, options: RunnerOptions = OPTIONS) -> ModelRunner:
    return ModelRunner.load(folder, options=options, progress=silent)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    loaded = load(write_model(tmp_path_factory.mktemp("model") / "1"))
    yield loaded
    loaded.close()


def tokens(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG["vocab_size"], count)]


def whole(
    runner: ModelRunner, ids: Sequence[int], blocks: Sequence[int], *, prompt: int | None = None
) -> Segment:
    base, scale = runner.rope_for(len(ids) if prompt is None else prompt)
    return Segment(ids, 0, blocks, 0, base, scale)


def part(segment: Segment, first: int, last: int) -> Segment:
    ids = segment.token_ids[first:last]
    return Segment(ids, first, segment.block_table, 0, segment.rope_base, segment.rope_scale)


def error(got: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("count", [1, 16, 31, 32, 33, 65, 90])
def test_logits_are_the_reference_s(runner: ModelRunner, count: int) -> None:
    ids = tokens(count, count)
    got = runner.execute([whole(runner, ids, range(6))])
    expected = forward(random_weights(), dict(CONFIG), ids)
    assert got.shape == expected.shape
    assert error(got, expected) <= 1e-5


def rounded(weights: Weights, dtype: str) -> Weights:
    if dtype == "float16":
        return {name: values.astype(np.float16).astype(np.float32) for name, values in weights.items()}
    return {
        name: (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        for name, values in weights.items()
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_lose_nothing_further(tmp_path: Path, dtype: str) -> None:
    weights = rounded(random_weights(), dtype)
    ids = tokens(7, 40)
    expected = forward(weights, dict(CONFIG), ids)
    results = []
    for stored, wanted in ((dtype, "auto"), (dtype, "float32"), ("float32", dtype)):
        folder = write_model(tmp_path / f"{stored}-{wanted}", weights, stored)
        options = RunnerOptions(
            num_blocks=8, max_rows=64, max_logit_rows=64, threads=2, dtype=wanted, kv_dtype="float32"
        )
        runner = load(folder, options)
        results.append(runner.execute([whole(runner, ids, range(3))]).copy())
        assert runner.weight_bytes < (210_000 if wanted != "float32" else 420_000)
        runner.close()
    assert error(results[0], expected) <= 1e-5
    assert all(np.array_equal(results[0], other) for other in results)


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float16"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "int8", "bfloat16"),
        ("float32", "int4", "float32"),
    ],
)
def test_keys_and_values_are_kept_in_the_float_type_of_the_weights(
    tmp_path: Path, stored: str, dtype: str, expected: str
) -> None:
    folder = write_model(tmp_path, random_weights(), stored)
    results = []
    for kv_dtype in ("auto", expected):
        options = RunnerOptions(num_blocks=8, max_rows=64, max_logit_rows=64, dtype=dtype, kv_dtype=kv_dtype)
        runner = load(folder, options)
        logits = runner.execute([whole(runner, tokens(7, 40), range(3))]).copy()
        assert runner.kv_dtype == expected
        results.append((runner.kv_bytes_per_block, logits))
        runner.close()
    assert results[0][0] == results[1][0] == estimate(folder, dtype).kv_bytes_per_block
    assert np.array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize(("kv_dtype", "share"), [("bfloat16", 1 / 2), ("int8", 1 / 3)])
def test_narrow_keys_and_values_take_less_memory(
    tmp_path: Path, runner: ModelRunner, kv_dtype: str, share: float
) -> None:
    """int8: a head has 8 + 16 of them, and two float scales."""
    options = RunnerOptions(num_blocks=64, max_rows=96, max_logit_rows=96, threads=2, kv_dtype=kv_dtype)
    half = load(write_model(tmp_path), options)
    segment = whole(half, tokens(1, 90), [9, 3, 40, 41, 0, 63])
    got, expected = half.execute([segment]).copy(), runner.execute([segment])
    assert 0 < error(got, expected) <= 0.05
    pieces = [
        half.execute([part(segment, first, last)]).copy() for first, last in ((0, 17), (17, 18), (18, 90))
    ]
    assert np.array_equal(np.concatenate(pieces), got)
    assert half.kv_bytes_per_block == runner.kv_bytes_per_block * share
    half.close()


def test_first_and_last_block_of_a_large_cache_are_as_good_as_of_a_small_one(
    tmp_path: Path, runner: ModelRunner
) -> None:
    many = 3 * 2**21 // (runner.kv_bytes_per_block // 4)
    large = load(
        write_model(tmp_path), RunnerOptions(num_blocks=many, max_rows=96, max_logit_rows=96, threads=2)
    )
    ids = tokens(1, 40)
    expected = runner.execute([whole(runner, ids, [0, 1, 2])]).copy()
    assert np.array_equal(large.execute([whole(large, ids, [0, many // 2, many - 1])]), expected)
    large.close()


@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 90), (0, 17, 18, 64, 90), (0, 89, 90), tuple(range(91))])
def test_any_chunking_gives_the_bits_of_the_full_forward(runner: ModelRunner, cuts: Sequence[int]) -> None:
    segment = whole(runner, tokens(1, 90), [9, 3, 40, 41, 0, 63])
    expected = runner.execute([segment]).copy()
    pieces = [runner.execute([part(segment, first, last)]).copy() for first, last in pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), expected)


def test_a_token_does_not_depend_on_its_batch(runner: ModelRunner) -> None:
    lengths = [5, 16, 33, 1, 8, 21]
    prompts = [tokens(10 + index, length) for index, length in enumerate(lengths)]
    tables = [range(4 * index, 4 * index + 4) for index in range(len(prompts))]
    segments = [whole(runner, ids, table) for ids, table in zip(prompts, tables, strict=True)]
    alone = [runner.execute([segment]).copy() for segment in segments]
    together = runner.execute(segments).copy()
    assert np.array_equal(together, np.concatenate(alone))
    mixed = [part(segments[0], 4, 5), segments[2], part(segments[1], 15, 16), part(segments[5], 7, 21)]
    expected = [alone[0][4:], alone[2], alone[1][15:], alone[5][7:]]
    assert np.array_equal(runner.execute(mixed), np.concatenate(expected))


def test_two_models_take_turns(runner: ModelRunner, tmp_path: Path) -> None:
    other = load(write_model(tmp_path, random_weights(1)))
    first, second = whole(runner, tokens(8, 24), [4, 5]), whole(other, tokens(9, 24), [5, 4])
    alone = runner.execute([first]).copy(), other.execute([second]).copy()
    for _ in range(3):
        assert np.array_equal(runner.execute([first]), alone[0])
        assert np.array_equal(other.execute([second]), alone[1])
    other.close()


def test_an_empty_step_is_a_step(runner: ModelRunner) -> None:
    assert runner.execute([]).shape == (0, runner.vocab_size)


def test_only_the_rows_asked_for_come_back(runner: ModelRunner) -> None:
    segment = whole(runner, tokens(2, 20), range(2))
    full = runner.execute([segment]).copy()
    last = Segment(segment.token_ids, 0, range(2), 19, segment.rope_base, segment.rope_scale)
    none = Segment(tokens(3, 9), 0, range(2, 4), 9, segment.rope_base, segment.rope_scale)
    assert np.array_equal(runner.execute([none, last]), full[19:])
    assert runner.execute([none]).shape == (0, runner.vocab_size)


def test_the_likeliest_token_is_the_first_of_the_largest_logits(tmp_path: Path) -> None:
    weights = random_weights()
    head = weights["lm_head.weight"]
    half = (len(head) + 1) // 2
    head[half:] = head[: len(head) - half]
    twice = load(write_model(tmp_path, weights))
    for rows in (1, 7, 90):
        logits = twice.execute([whole(twice, tokens(rows, rows), range(6))])
        assert twice.likeliest is not None
        assert np.array_equal(twice.likeliest, logits.argmax(axis=1))
        assert (twice.likeliest < half).all()
    twice.close()


def test_a_copied_block_is_the_same_block(runner: ModelRunner) -> None:
    segment = whole(runner, tokens(4, 40), [0, 1, 2])
    expected = runner.execute([segment]).copy()
    for src, dst in ((0, 20), (1, 21), (2, 22)):
        runner.copy_block(src, dst)
    moved = Segment(segment.token_ids[39:], 39, [20, 21, 22], 0, segment.rope_base, segment.rope_scale)
    assert np.array_equal(runner.execute([moved]), expected[39:])
    with pytest.raises(Fault, match="no such KV block"):
        runner.copy_block(0, 64)


@pytest.mark.parametrize(
    ("length", "base", "scale"),
    [
        (1, 10000, 1),
        (8192, 10000, 1),
        (8193, 30527.7367, 1.000012),
        (12000, 30527.7367, 1.038175),
        (16384, 30527.7367, 1.069315),
        (16385, 72195.8601, 1.069321),
        (32768, 72195.8601, 1.138629),
    ],
)
def test_dynamic_ntk_is_the_published_table(length: int, base: float, scale: float) -> None:
    from daemon.backends.ms.layers import dynamic_ntk

    got = dynamic_ntk(length, dim=128, training_len=8192, base_len=8192)
    assert got[0] == pytest.approx(base, abs=1e-3)
    assert got[1] == pytest.approx(scale, abs=1e-6)


def test_facts_of_a_loaded_model(runner: ModelRunner) -> None:
    assert (runner.vocab_size, runner.block_size, runner.context_len) == (211, 16, 256)
    assert (runner.num_blocks, runner.max_rows, runner.max_logit_rows) == (64, 96, 96)
    assert runner.kv_bytes_per_block == 3 * 2 * (8 + 16) * 16 * 4
    assert runner.weight_bytes >= 4 * (2 * 211 * 48)


def test_steps_beyond_the_limits_are_refused_and_the_next_one_works(runner: ModelRunner) -> None:
    fine = whole(runner, tokens(5, 3), [0])
    expected = runner.execute([fine]).copy()
    bad = {
        "may have 96 rows": [whole(runner, tokens(6, 97), range(7))],
        "block table holds": [whole(runner, tokens(6, 17), [0])],
        "KV block 64": [whole(runner, tokens(6, 3), [64])],
        "not in the vocabulary": [whole(runner, [1, 211], [0])],
        "token -1": [whole(runner, [-1], [0])],
        "no tokens": [whole(runner, [], [0], prompt=1)],
    }
    for message, segments in bad.items():
        with pytest.raises(Fault, match=message):
            runner.execute(segments)
        assert np.array_equal(runner.execute([fine]), expected)


def test_weights_that_give_no_numbers_fail_the_load(tmp_path: Path) -> None:
    weights = random_weights()
    weights["transformer.h.1.mlp.down_proj.bias"][:] = 3e38
    weights["transformer.h.2.mlp.down_proj.bias"][:] = 3e38
    runner = load(write_model(tmp_path / "1"))
    runner.close()
    with pytest.raises(Fault, match="logits that are NaN or infinite"):
        load(write_model(tmp_path / "2", weights))


def test_a_row_that_is_not_finite_begins_with_nan_and_leaves_the_others_alone(tmp_path: Path) -> None:
    weights = random_weights()
    good, bad = tokens(7, 20), tokens(8, 20)
    poison = next(token for token in range(1, CONFIG["vocab_size"]) if token not in good)
    bad[11] = poison
    weights["transformer.word_embeddings.weight"][poison] = 3e38
    runner = load(write_model(tmp_path, weights))
    expected = runner.execute([whole(runner, good, [0, 1])]).copy()
    got = runner.execute([whole(runner, bad, [2, 3]), whole(runner, good, [4, 5])]).copy()
    runner.close()
    assert np.array_equal(got[20:], expected)
    assert np.isnan(got[11:20, 0]).all()


def test_a_missing_mindspore_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    afresh = runner_module._set_up_mindspore.__wrapped__
    monkeypatch.setattr(runner_module, "_set_up_mindspore", afresh)
    monkeypatch.setitem(sys.modules, "mindspore", None)
    with pytest.raises(Fault, match="MindSpore cannot be imported") as caught:
        load(write_model(tmp_path / "1"))
    assert caught.value.kind is FaultKind.INVALID_CONFIG
    assert "mindspore.cn" in (caught.value.hint or "")


def test_a_closed_runner_says_so(tmp_path: Path) -> None:
    runner = load(write_model(tmp_path))
    runner.close()
    runner.close()
    with pytest.raises(Fault, match="closed") as caught:
        runner.execute([])
    assert caught.value.kind is FaultKind.NOT_READY


def test_a_lost_tensor_fails_the_load(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["transformer.h.1.self_attention.dense.bias"]
    with pytest.raises(Fault, match=r"lacks transformer\.h\.1\.self_attention\.dense\.bias"):
        load(write_model(tmp_path, weights))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunnerOptions(num_blocks=0), "must be positive"),
        (RunnerOptions(num_blocks=4, dtype="int3"), "dtype 'int3'"),
        (RunnerOptions(num_blocks=4, kv_dtype="int4"), "kv_dtype 'int4'"),
        (RunnerOptions(num_blocks=4, head_dtype="int4"), "head_dtype 'int4'"),
        (RunnerOptions(num_blocks=4, activation_dtype="int6"), "activation_dtype 'int6'"),
        (RunnerOptions(num_blocks=4, block_size=32), "blocks of 16 positions"),
        (RunnerOptions(num_blocks=1 << 40), "out of memory"),
    ],
)
def test_options_that_cannot_be_met(tmp_path: Path, options: RunnerOptions, message: str) -> None:
    with pytest.raises(Fault, match=message):
        load(write_model(tmp_path), options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("LAYER_API = 999", "layer API 999"),
        ("LAYER_API = 0", "layer API 0"),
        ("LAYER_API = '1'", "layer API 1"),
        ("LAYER_API = 1", "has no class Network"),
        ("import nothing_like_it", "cannot be loaded"),
        (
            "LAYER_API = 1\ndef Network(config, device): raise KeyError('n_layer')",
            "cannot be built: 'n_layer'",
        ),
        ("LAYER_API = 1\ndef Network(config, device): return device", "cannot be compiled"),
    ],
)
def test_network_files_that_do_not_fit(tmp_path: Path, source: str, message: str) -> None:
    write_model(tmp_path)
    (tmp_path / "telechat2.py").write_text(source)
    with pytest.raises(Fault, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serving": {}}, "must name the network file"),
        ({"serving": {"network": "../telechat2.py"}}, "must name the network file"),
        ({"serving": {"network": "gone.py"}}, "does not exist"),
        ({"hidden_size": None}, "positive number hidden_size"),
        ({"n_head": 5}, "cannot share"),
    ],
)
def test_configurations_that_make_no_sense(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(Fault, match=message):
        load(tmp_path)
