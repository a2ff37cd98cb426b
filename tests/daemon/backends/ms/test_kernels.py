"""Each kernel against NumPy; the same bits on every instruction set, with any threads, in any batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.memory import resident_bytes
from daemon.backends.ms.kernels import (
    FORMATS,
    ISA_VARIABLE,
    FloatArray,
    KernelError,
    Kernels,
    pointer,
)

DTYPES = tuple(FORMATS)
fast = settings(max_examples=25, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def stored(values: FloatArray, dtype: str) -> FloatArray:
    """What is left of values kept in a dtype."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "float32":
        return values
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    return rounded.view(np.float32)


class Packed:
    """A packed matrix that is freed again."""

    def __init__(self, kernels: Kernels, weights: FloatArray, dtype: str) -> None:
        self.kernels, self.rows = kernels, weights.shape[0]
        self.handle = kernels.new_matrix(*weights.shape, dtype=dtype)
        kernels.pack(self.handle, (0, 0, self.rows), pointer(weights), "float32")

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, *_: object) -> None:
        self.kernels.free_matrix(self.handle)

    def times(self, a: FloatArray) -> FloatArray:
        return self.kernels.matmul(self.handle, a, -(-self.rows // 16))[:, : self.rows]


@fast
@given(
    n=st.integers(1, 300),
    k=st.integers(1, 300),
    m=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
def test_matmul_is_the_product(kernels: Kernels, n: int, k: int, m: int, dtype: str, seed: int) -> None:
    weights, a = normal(seed, n, k), normal(seed + 1, m, k)
    exact = a.astype(np.float64) @ stored(weights, dtype).astype(np.float64).T
    bound = np.abs(a).astype(np.float64) @ np.abs(stored(weights, dtype)).astype(np.float64).T
    with Packed(kernels, weights, dtype) as matrix:
        assert np.all(np.abs(matrix.times(a) - exact) <= 1e-6 * np.sqrt(k) * bound + 1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_has_the_same_bits_everywhere(kernels: Kernels, isas: Sequence[str], dtype: str) -> None:
    weights, a = normal(0, 333, 521), normal(1, 61, 521)
    seen = []
    with Packed(kernels, weights, dtype) as matrix:
        for isa in isas:
            kernels.select_isa(isa)
            for threads in (1, 3):
                kernels.threads = threads
                whole = matrix.times(a)
                pieces = [
                    matrix.times(a[first:last])
                    for first, last in ((0, 1), (1, 3), (3, 10), (10, 27), (27, 61))
                ]
                seen += [whole, np.concatenate(pieces)]
    assert all(np.array_equal(seen[0], other) for other in seen)


def test_parts_take_turns(kernels: Kernels) -> None:
    gate, up, a = normal(0, 40, 24), normal(1, 40, 24), normal(2, 3, 24)
    matrix = kernels.new_matrix(40, 24, parts=2)
    for part, weights in enumerate((gate, up)):
        kernels.pack(matrix, (part, 0, 40), pointer(weights), "float32")
    out = kernels.matmul(matrix, a, 6).reshape(3, 3, 2, 16)
    kernels.free_matrix(matrix)
    for part, weights in enumerate((gate, up)):
        np.testing.assert_allclose(
            out[:, :, part].reshape(3, 48)[:, :40], a @ weights.T, rtol=1e-4, atol=1e-5
        )


@fast
@given(st.integers(1, 700), st.integers(0, 9))
def test_rms_norm(kernels: Kernels, n: int, seed: int) -> None:
    x, weight = normal(seed, n), normal(seed + 1, n)
    expected = x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5) * weight
    np.testing.assert_allclose(kernels.rms_norm(x, weight, 1e-5), expected, rtol=2e-6)


def test_exp_is_accurate(kernels: Kernels) -> None:
    x = np.linspace(-87, 88, 100_003, dtype=np.float32)
    np.testing.assert_allclose(kernels.exp(x), np.exp(x.astype(np.float64)), rtol=2e-7)


def test_exp_at_the_ends(kernels: Kernels) -> None:
    low, high, zero, nan = kernels.exp(np.array([-np.inf, np.inf, 0, np.nan], np.float32))
    assert 0 <= low < 1e-37
    assert 1e38 < high < np.inf
    assert zero == 1.0
    assert np.isnan(nan)


def test_silu(kernels: Kernels) -> None:
    x = np.array([-200, -20, -1, -1e-8, 0, 1e-8, 1, 20, 200], np.float32)
    with np.errstate(over="ignore"):
        expected = x / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(kernels.silu(x), expected, rtol=1e-6, atol=1e-35)


@fast
@given(st.integers(1, 512), st.integers(0, 9))
def test_softmax(kernels: Kernels, n: int, seed: int) -> None:
    x = normal(seed, n) * 8
    e = np.exp(x.astype(np.float64) - x.max())
    np.testing.assert_allclose(kernels.softmax(x), e / e.sum(), rtol=3e-6, atol=2.0**-63)


def test_row_kernels_have_the_same_bits_everywhere(kernels: Kernels, isas: Sequence[str]) -> None:
    x, weight = normal(0, 333) * 10, normal(1, 333)
    results = []
    for isa in isas:
        kernels.select_isa(isa)
        row = [kernels.exp(x), kernels.silu(x), kernels.softmax(x), kernels.rms_norm(x, weight, 1e-6)]
        results.append(np.concatenate(row))
    assert all(np.array_equal(results[0], other) for other in results)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_finite_sees_every_place(kernels: Kernels, bad: float) -> None:
    x = normal(0, 37)
    assert kernels.finite(x)
    for place in range(37):
        spoiled = x.copy()
        spoiled[place] = bad
        assert not kernels.finite(spoiled)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_counts_what_is_not_finite(kernels: Kernels, dtype: str) -> None:
    weights = normal(0, 20, 33)
    weights[3, 4], weights[19, 32] = np.nan, np.inf
    matrix = kernels.new_matrix(20, 33, dtype=dtype)
    assert kernels.pack(matrix, (0, 0, 20), pointer(weights), "float32") == 2
    kernels.free_matrix(matrix)


def test_converting_out_of_range_counts(kernels: Kernels) -> None:
    weights = np.full((1, 1), 1e6, np.float32)
    matrix = kernels.new_matrix(1, 1, dtype="float16")
    assert kernels.pack(matrix, (0, 0, 1), pointer(weights), "float32") == 1
    kernels.free_matrix(matrix)


def test_conversions_agree_with_numpy(kernels: Kernels) -> None:
    exponents = np.exp2(np.linspace(-26, 15, 4001)).astype(np.float32)
    values = np.concatenate((exponents, -exponents, [0.0])).astype(np.float32)[None, :]
    one = np.ones((1, 1), np.float32)
    for dtype in DTYPES:
        with Packed(kernels, np.ascontiguousarray(values.T), dtype) as matrix:
            assert np.array_equal(matrix.times(one), stored(values, dtype))


def test_wrong_calls_are_refused(kernels: Kernels) -> None:
    with pytest.raises(KernelError, match="no such matrix"):
        kernels.free_matrix(10**9)
    with pytest.raises(KernelError, match="positive"):
        kernels.new_matrix(0, 4)
    with pytest.raises(KernelError, match="at least one thread"):
        kernels.threads = 0
    matrix = kernels.new_matrix(16, 4)
    with pytest.raises(KernelError, match="outside the matrix"):
        kernels.pack(matrix, (0, 8, 16), pointer(normal(0, 16, 4)), "float32")
    kernels.free_matrix(matrix)
    assert not kernels.select_isa("sse9")
    with pytest.raises(KernelError, match="contiguous"):
        pointer(normal(0, 4, 4)[:, ::2])


def test_an_absurd_size_is_out_of_memory(kernels: Kernels) -> None:
    with pytest.raises(KernelError) as caught:
        kernels.new_matrix(1 << 24, 1 << 24)
    assert caught.value.out_of_memory


@pytest.mark.parametrize("size", [0, 5000, 40_000, 3 << 20, 64 << 20])
def test_reserved_memory_is_as_fresh_as_any(kernels: Kernels, size: int) -> None:
    """For none, some, or all of the matrices; which outlive the reserve, and go in any order."""
    shapes = [(16, 100), (48, 300), (700, 1000), (33, 7)]
    sources = [normal(place, *shape) for place, shape in enumerate(shapes)]
    for _ in range(3):
        with kernels.reserve(size):
            matrices = [kernels.new_matrix(*shape) for shape in shapes]
            assert not any(any(kernels.matrix_data(matrix)) for matrix in matrices[:2])
        for matrix, source in zip(matrices, sources, strict=True):
            kernels.pack(matrix, (0, 0, len(source)), pointer(source), "float32")
        for matrix, source in zip(matrices, sources, strict=True):
            panels = -(-len(source) // 16)
            product = kernels.matmul(matrix, np.eye(source.shape[1], dtype=np.float32), panels)
            assert np.array_equal(product[:, : len(source)], source.T)
        for place in (2, 0, 3, 1):
            kernels.free_matrix(matrices[place])


def test_reserved_memory_is_there_before_anybody_wants_it(kernels: Kernels) -> None:
    size, before, deadline = 64 << 20, resident_bytes(), time.monotonic() + 30
    with kernels.reserve(size):
        while resident_bytes() < before + size * 0.9 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert resident_bytes() >= before + size * 0.9
    assert resident_bytes() < before + size // 2


def test_what_is_wanted_at_once_or_given_back_is_not_touched_again(kernels: Kernels) -> None:
    for _ in range(20):
        with kernels.reserve(32 << 20):
            kernels.free_matrix(kernels.new_matrix(16, 100_000))


def test_more_than_there_is_cannot_be_reserved(kernels: Kernels) -> None:
    with pytest.raises(KernelError) as caught, kernels.reserve(1 << 55):
        pass
    assert caught.value.out_of_memory


def test_threads_come_and_go(kernels: Kernels) -> None:
    weights, a = normal(0, 512, 64), normal(1, 2, 64)
    with Packed(kernels, weights, "float32") as matrix:
        first = matrix.times(a)
        for threads in (4, 1, 2, 8, 3):
            kernels.threads = threads
            assert kernels.threads == threads
            for _ in range(50):
                assert np.array_equal(matrix.times(a), first)


def test_a_forced_instruction_set_must_exist(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "portable")
    assert Kernels().isa == "portable"
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(KernelError, match="sse9"):
        Kernels()


def test_a_library_that_was_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="were not built"):
        Kernels(tmp_path / "lib.so")
    (tmp_path / "lib.so").write_text("nothing")
    with pytest.raises(KernelError, match="cannot be loaded"):
        Kernels(tmp_path / "lib.so")


def test_idle_threads_sleep(kernels: Kernels) -> None:
    weights, a = normal(0, 512, 64), normal(1, 2, 64)
    kernels.threads = 4
    with Packed(kernels, weights, "float32") as matrix:
        matrix.times(a)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1
