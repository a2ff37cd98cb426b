"""Attention over the paged cache: grouped heads, rotary, ALiBi, windows, long contexts, any chunking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.backends.ms import kernels as k
from daemon.backends.ms.kernels import CACHE_FORMATS, FloatArray, KernelError, Kernels, pointer

BLOCKS = 160
fast = settings(max_examples=40, deadline=None, derandomize=True)


@dataclass
class Layer:
    """An attention block with random weights and its NumPy form."""

    library: Kernels
    heads: int
    kv_heads: int
    dim: int
    rotary: int
    slopes: Sequence[float] = ()
    hidden: int = 40
    kv_dtype: str = "float32"
    window: int = 0
    normed: bool = False
    factors: Sequence[float] = ()

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.heads * 100 + self.dim)
        width = (self.heads + 2 * self.kv_heads) * self.dim
        self.model = self.library.new_model(4096, 1, BLOCKS, kv_dtype=self.kv_dtype)
        numbers = (k.ATTENTION, self.hidden, 0, self.heads, self.kv_heads, self.dim, self.rotary, self.window)
        self.block = self.library.new_block(self.model, numbers, 1e-5, 0.5)
        self.norm = rng.standard_normal(self.hidden, dtype=np.float32)
        self.qkv = rng.standard_normal((width, self.hidden), dtype=np.float32) * np.float32(0.2)
        self.bias = rng.standard_normal(width, dtype=np.float32)
        self.out = rng.standard_normal((self.hidden, self.heads * self.dim), dtype=np.float32)
        for slot, weights in ((k.IN_MATRIX, self.qkv), (k.OUT_MATRIX, self.out)):
            matrix = self.library.new_matrix(*weights.shape)
            self.library.pack(matrix, (0, 0, weights.shape[0]), pointer(weights), "float32")
            self.library.set_matrix(self.block, slot, matrix)
            self.library.free_matrix(matrix)
        self.library.set_vector(self.block, k.NORM, self.norm, size=self.hidden)
        self.library.set_vector(self.block, k.IN_BIAS, self.bias, size=width)
        shape = (2, self.dim)
        self.head_norms = 1 + rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
        norms = self.head_norms if self.normed else ((), ())
        vectors = {k.SLOPES: self.slopes, k.QUERY_NORM: norms[0], k.KEY_NORM: norms[1]}
        for place, numbers_of in {**vectors, k.ROTARY_FACTORS: self.factors}.items():
            if len(numbers_of):
                values = np.array(numbers_of, np.float32)
                self.library.set_vector(self.block, place, values, size=values.size)

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.free_model(self.model)

    def step(self, pieces: Sequence[tuple[FloatArray, int, Sequence[int]]]) -> FloatArray:
        """Pieces (x, start, block table) computed as one step."""
        shape = np.array([(len(x), start, len(table), len(x)) for x, start, table in pieces], np.int64)
        rope = np.tile(np.array([10000.0, 1.1]), (len(pieces), 1))
        tables = np.array([block for _, _, table in pieces for block in table], np.int32)
        self.library.begin_step(self.model, shape, rope, tables)
        x = np.concatenate([piece[0] for piece in pieces])
        out = np.empty_like(x)
        self.library.run_block(self.block, x, out)
        return out

    def reference(
        self, x: FloatArray, *, rounded: bool = False
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """``rounded``: keys and values as int8 holds them."""
        wide = x.astype(np.float64)
        normed = wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + 1e-5) * self.norm
        projected = (normed @ self.qkv.T + self.bias).reshape(len(x), -1, self.dim)
        q, key = projected[:, : self.heads], projected[:, self.heads : self.heads + self.kv_heads]
        if self.normed:
            q, key = (
                part / np.sqrt(np.mean(part**2, axis=-1, keepdims=True) + 1e-5) * weight
                for part, weight in zip((q, key), self.head_norms, strict=True)
            )
        q, key = self._rotate(q), self._rotate(key)
        value = projected[:, self.heads + self.kv_heads :]
        if rounded:
            key, value = whole(key), whole(value)
        joined = np.empty((len(x), self.heads, self.dim))
        offset = np.arange(len(x))[None, :] - np.arange(len(x))[:, None]
        for head in range(self.heads):
            kv = head // (self.heads // self.kv_heads)
            scores = q[:, head] @ key[:, kv].T / np.sqrt(self.dim)
            if self.slopes:
                scores = scores + self.slopes[head] * offset
            seen = (offset <= 0) & ((offset > -self.window) | (self.window == 0))
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            joined[:, head] = weights / weights.sum(axis=1, keepdims=True) @ value[:, kv]
        result: np.ndarray[tuple[int, int], np.dtype[np.float64]]
        result = wide + 0.5 * (joined.reshape(len(x), -1) @ self.out.T)
        return result

    def _rotate(
        self, heads: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        half = self.rotary // 2
        if half == 0:
            return heads
        frequencies = 10000.0 ** (-np.arange(half) / half) / (np.array(self.factors) if self.factors else 1)
        angle = np.outer(np.arange(len(heads)), frequencies)
        cos, sin = (1.1 * f(angle)[:, None, :] for f in (np.cos, np.sin))
        a, b = heads[..., :half], heads[..., half : self.rotary]
        return np.concatenate((a * cos - b * sin, b * cos + a * sin, heads[..., self.rotary :]), axis=-1)


def whole(
    heads: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Rounded to 127ths of the largest magnitude of each head."""
    scales = np.abs(heads).max(axis=-1, keepdims=True) / 127
    result: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.rint(heads / scales) * scales
    return result


def table(seed: int, count: int) -> list[int]:
    return [int(block) for block in np.random.default_rng(seed).permutation(BLOCKS)[:count]]


def inputs(rows: int, hidden: int = 40) -> FloatArray:
    return np.random.default_rng(rows).standard_normal((rows, hidden), dtype=np.float32)


SHAPES = [
    (4, 4, 16, 16, ()),
    (6, 2, 8, 8, ()),
    (7, 1, 24, 12, ()),
    (2, 2, 64, 0, (0.5, 0.03)),
    (3, 3, 34, 34, ()),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 17, 100])
def test_attention_is_what_numpy_says(
    kernels: Kernels, shape: tuple[int, int, int, int, Sequence[float]], rows: int
) -> None:
    x = inputs(rows)
    with Layer(kernels, *shape) as layer:
        got = layer.step([(x, 0, table(0, -(-rows // 16)))])
        expected = layer.reference(x)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_long_contexts_cross_softmax_chunks(kernels: Kernels) -> None:
    x = inputs(1300)
    with Layer(kernels, 4, 2, 16, 16) as layer:
        got = layer.step([(x, 0, table(1, 82))])
        expected = layer.reference(x)
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of any layer, small enough to be quick."""
    kv_heads, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 5, 16]))
    dim = draw(st.sampled_from([8, 16, 22, 40, 64]))
    rotary = draw(st.sampled_from([0, 2, dim // 2 // 2 * 2, dim]))
    slopes = draw(st.booleans()) and rotary == 0
    factors = draw(st.lists(st.floats(1, 40, width=32), min_size=rotary // 2, max_size=rotary // 2))
    return {
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "dim": dim,
        "rotary": rotary,
        "slopes": [0.5 ** (1 + head / 2) for head in range(kv_heads * group)] if slopes else (),
        "window": draw(st.sampled_from([0, 1, 7, 16, 33, 511, 512, 600])),
        "normed": draw(st.booleans()),
        "factors": factors if draw(st.booleans()) else (),
    }


@fast
@given(layers(), st.sampled_from([1, 15, 16, 40, 130, 700]), st.integers(0, 700))
def test_any_layer_in_two_steps_is_what_numpy_says(
    kernels: Kernels, arguments: dict[str, Any], rows: int, cut: int
) -> None:
    x, blocks = inputs(rows), table(3, 44)
    cut = min(cut, rows)
    with Layer(kernels, **arguments) as layer:
        expected = layer.reference(x)
        pieces = [(x[first:last], first, blocks) for first, last in ((0, cut), (cut, rows)) if first < last]
        got = np.concatenate([layer.step([piece]) for piece in pieces])
        assert np.array_equal(got, layer.step([(x, 0, table(4, 44))]))
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


def test_what_left_the_window_is_not_read(kernels: Kernels) -> None:
    x = inputs(700)
    with Layer(kernels, 4, 2, 16, 16, window=100) as layer:
        whole = layer.step([(x, 0, table(5, 44))])
        layer.step([(np.full_like(x[:16], np.nan), 0, [table(5, 44)[3]])])
        assert np.array_equal(layer.step([(x[699:], 699, table(5, 44))]), whole[699:])


@pytest.mark.parametrize(("kv_dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3), ("int8", 3e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_narrow_cache_loses_no_more_than_that(
    kernels: Kernels, shape: tuple[int, int, int, int, Sequence[float]], kv_dtype: str, tolerance: float
) -> None:
    x = inputs(600)
    with Layer(kernels, *shape, kv_dtype=kv_dtype) as layer:
        got = layer.step([(x, 0, table(0, 38))])
        expected = layer.reference(x)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("options", [{}, {"slopes": (0.5, 0.1, 0.02, 0.3, 0.01, 0.004)}, {"window": 530}])
@pytest.mark.parametrize("kv_dtype", CACHE_FORMATS)
def test_any_chunking_any_isa_any_threads_gives_the_same_bits(
    kernels: Kernels, isas: Sequence[str], kv_dtype: str, options: dict[str, Any]
) -> None:
    x = inputs(1100)
    blocks = table(2, 69)
    other = inputs(90), 0, table(2, 120)[100:]
    results = []
    with Layer(kernels, 6, 2, 16, 16, kv_dtype=kv_dtype, **options) as layer:
        for isa in isas:
            kernels.select_isa(isa)
            for threads, cuts in ((1, (0, 1100)), (3, (0, 1, 2, 19, 500, 513, 1024, 1099, 1100))):
                kernels.threads = threads
                pieces = []
                for first, last in pairwise(cuts):
                    busy = [other] if first == 19 else []
                    pieces.append(layer.step([(x[first:last], first, blocks), *busy])[: last - first])
                results.append(np.concatenate(pieces))
    assert all(np.array_equal(results[0], result) for result in results)


@pytest.mark.parametrize(
    "options",
    [
        {"rotary": 64},
        {"rotary": 0, "slopes": [0.7**head for head in range(16)]},
        {"rotary": 64, "window": 1700},
    ],
    ids=["rotary", "alibi", "window"],
)
@pytest.mark.parametrize("kv_dtype", CACHE_FORMATS)
def test_a_long_context_spread_over_threads_gives_the_bits_of_one(
    kernels: Kernels, kv_dtype: str, options: dict[str, Any]
) -> None:
    """Few rows that see much: their chunks are computed apart and joined in order."""
    x, blocks = inputs(2300), table(6, 144)
    with Layer(kernels, heads=16, kv_heads=1, dim=64, kv_dtype=kv_dtype, **options) as layer:
        kernels.threads = 1
        expected = layer.step([(x, 0, blocks)])
        for threads in (2, 3, 8):
            kernels.threads = threads
            one = layer.step([(x[2299:], 2299, blocks)])
            two = layer.step([(x[2200:2203], 2200, blocks), (x[700:701], 700, blocks)])
            assert np.array_equal(np.concatenate([one, two]), expected[[2299, 2200, 2201, 2202, 700]])


@pytest.mark.parametrize("kv_dtype", CACHE_FORMATS)
def test_a_copied_block_continues_alike(kernels: Kernels, kv_dtype: str) -> None:
    x = inputs(33)
    with Layer(kernels, 4, 2, 16, 16, kv_dtype=kv_dtype) as layer:
        whole = layer.step([(x, 0, [0, 1, 2])])
        for src, dst in ((0, 10), (1, 11)):
            kernels.copy_block(layer.model, src, dst)
        assert np.array_equal(layer.step([(x[32:], 32, [10, 11, 12])]), whole[32:])


def test_whole_numbers_in_the_cache_are_rounded_as_documented(kernels: Kernels) -> None:
    """Symmetric for each position and head: the oracle rounds keys and values the same way."""
    x = inputs(100)
    with Layer(kernels, 6, 2, 24, 24, kv_dtype="int8") as layer:
        got = layer.step([(x, 0, table(0, 7))])
        expected = layer.reference(x, rounded=True)
    assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("kv_dtype", CACHE_FORMATS)
def test_nan_stays_with_its_sequence(kernels: Kernels, kv_dtype: str) -> None:
    x, spoiled = inputs(20), inputs(20)
    spoiled[3] = np.nan
    with Layer(kernels, 4, 2, 16, 16, kv_dtype=kv_dtype) as layer:
        clean = layer.step([(x, 0, [0, 1])])
        both = layer.step([(spoiled, 0, [2, 3]), (x, 0, [4, 5])])
        assert np.isnan(both[3:20]).all()
        assert np.array_equal(both[20:], clean)
        assert np.isnan(layer.step([(x[:1], 20, [2, 3])])).all()


def test_stale_nan_in_a_block_does_not_spread(kernels: Kernels) -> None:
    x = inputs(20)
    with Layer(kernels, 4, 2, 16, 16) as layer:
        clean = layer.step([(x, 0, [0, 1])])
        layer.step([(np.full_like(x[:17], np.nan), 0, [1, 0])])
        assert np.array_equal(layer.step([(x, 0, [0, 1])]), clean)


@pytest.mark.parametrize(
    ("shape", "rope", "blocks", "message"),
    [
        ((0, 0, 1, 0), (1e4, 1), [0], "no tokens"),
        ((1, -1, 1, 0), (1e4, 1), [0], "negative position"),
        ((1, 0, 1, 2), (1e4, 1), [0], "logits_from"),
        ((17, 0, 1, 17), (1e4, 1), [0], "needs 17 positions"),
        ((1, 0, 1, 0), (1e4, 1), [BLOCKS], "names KV block"),
        ((1, 0, 1, 0), (1e4, 1), [-1], "names KV block"),
        ((1, 0, 1, 0), (0, 1), [0], "rotary base"),
        ((1, 0, 1, 0), (1e4, np.nan), [0], "rotary base"),
        ((2, 0, 1, 0), (1e4, 1), [0], "rows of logits"),
    ],
)
def test_steps_that_make_no_sense_are_refused(
    kernels: Kernels, shape: Sequence[int], rope: Sequence[float], blocks: Sequence[int], message: str
) -> None:
    model = kernels.new_model(64, 1, BLOCKS)
    with pytest.raises(KernelError, match=message):
        kernels.begin_step(
            model, np.array([shape], np.int64), np.array([rope], np.float64), np.array(blocks, np.int32)
        )
    kernels.free_model(model)
