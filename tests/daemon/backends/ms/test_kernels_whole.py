"""Products of whole numbers: against exact integers, and the same bits on every instruction set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.backends.ms.kernels import FORMATS, FloatArray, KernelError, Kernels, Whole, pointer
from tests.daemon.backends.ms.quantized import dequantize, pack, quantize

fast = settings(max_examples=25, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class Packed:
    """A packed matrix of whole numbers, from the layout of checkpoints, that is freed again."""

    def __init__(
        self, kernels: Kernels, weights: FloatArray, bits: int, group: int, activations: str = "int8"
    ) -> None:
        self.kernels, self.group, self.rows = kernels, group, weights.shape[0]
        self.steps = 64 if kernels.select_activations(activations) == "int7" and bits == 8 else 127
        self.whole, self.scales = quantize(weights, bits, group)
        dtype = Whole(f"int{bits}", group, "float16")
        self.handle = kernels.new_whole_matrix(self.rows, weights.shape[1], dtype)
        assert self.put(pack(self.whole, bits), self.scales) == 0

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, *_: object) -> None:
        self.kernels.free_matrix(self.handle)
        self.kernels.select_activations("int8")

    def put(self, words: npt.NDArray[np.int32], scales: FloatArray) -> int:
        rows = (0, 0, self.rows)
        self.kernels.pack_whole(self.handle, rows, pointer(words))
        return self.kernels.pack_scales(self.handle, rows, pointer(scales), "float32")

    def times(self, a: FloatArray) -> FloatArray:
        return self.kernels.matmul(self.handle, a, -(-self.rows // 16))[:, : self.rows]

    def expected(self, a: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Activations rounded to so many steps a group, products exact."""
        total = np.zeros((a.shape[0], self.rows))
        for place in range(self.scales.shape[1]):
            columns = slice(place * self.group, (place + 1) * self.group)
            most = np.abs(a[:, columns]).max(1, keepdims=True)
            steps = np.rint(a[:, columns] * (np.float32(self.steps) / np.where(most > 0, most, 1)))
            products = steps.astype(np.int64) @ self.whole[:, columns].T
            total += products * (most.astype(np.float64) / self.steps) * self.scales[:, place]
        return total


@dataclass(frozen=True)
class Case:
    n: int
    k: int
    m: int
    bits: int
    group: int
    seed: int
    activations: str


CASES = st.builds(
    Case,
    n=st.integers(1, 300),
    k=st.integers(1, 600),
    m=st.integers(1, 70),
    bits=st.sampled_from((4, 8)),
    group=st.sampled_from((32, 64, 96, 128)),
    seed=st.integers(0, 9),
    activations=st.sampled_from(("int8", "int7")),
)


@fast
@given(case=CASES)
def test_the_product_is_of_exact_integers(kernels: Kernels, case: Case) -> None:
    weights, a = normal(case.seed, case.n, case.k), normal(case.seed + 1, case.m, case.k)
    with Packed(kernels, weights, case.bits, case.group, case.activations) as matrix:
        weights = dequantize(matrix.whole, matrix.scales, case.group)
        bound = np.abs(a).astype(np.float64) @ np.abs(weights).T
        # An activation halfway between two steps may go either way in the last bit of float32.
        step = np.abs(a).max() / matrix.steps * np.abs(weights).max()
        error = np.abs(matrix.times(a) - matrix.expected(a))
        assert np.all(error <= 1e-6 * bound + 1.01 * step)
        assert np.mean(error > 1e-6 * bound + 1e-30) < 0.01


@pytest.mark.parametrize(("bits", "activations"), [(4, "int8"), (8, "int8"), (4, "int7"), (8, "int7")])
@pytest.mark.parametrize("group", [32, 64, 96, 128])
def test_the_bits_are_the_same_everywhere(
    kernels: Kernels, isas: Sequence[str], bits: int, activations: str, group: int
) -> None:
    weights, a = normal(0, 333, 521), normal(1, 61, 521)
    weights[5], a[7] = 0, 0
    seen = []
    with Packed(kernels, weights, bits, group, activations) as matrix:
        for isa in isas:
            kernels.select_isa(isa)
            for threads in (1, 3):
                kernels.threads = threads
                cuts = ((0, 1), (1, 3), (3, 10), (10, 27), (27, 61))
                pieces = [matrix.times(a[first:last]) for first, last in cuts]
                seen += [matrix.times(a), np.concatenate(pieces)]
    assert all(np.array_equal(seen[0], other) for other in seen)
    assert not seen[0][7].any()
    assert not seen[0][:, 5].any()


@pytest.mark.parametrize(("bits", "activations"), [(4, "int8"), (8, "int8"), (8, "int7")])
@pytest.mark.parametrize("rows", [3, 40])
def test_the_largest_sums_do_not_overflow(
    kernels: Kernels, isas: Sequence[str], bits: int, activations: str, rows: int
) -> None:
    half = 1 << (bits - 1)
    a = np.tile(np.array([127, -127], np.float32), (rows, 256))
    for sign in (1, -1):
        with Packed(kernels, np.ones((16, 512), np.float32), bits, 128, activations) as matrix:
            whole = np.full((16, 512), -half if sign < 0 else half - 1, np.int64)
            matrix.put(pack(whole, bits), np.ones((16, 4), np.float32))
            for isa in isas:
                kernels.select_isa(isa)
                assert np.all(matrix.times(np.abs(a)) == 512 * 127 * whole[0, 0])
                assert not matrix.times(a).any()


@pytest.mark.parametrize("scales", list(FORMATS))
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_floats_are_rounded_to_the_nearest(kernels: Kernels, name: str, scales: str) -> None:
    weights = normal(3, 40, 100)
    handle = kernels.new_whole_matrix(40, 100, Whole(name, 32, scales))
    assert kernels.pack(handle, (0, 0, 40), pointer(weights), "float32") == 0
    steps = 2.0 / (16 if name == "int4" else 254)
    identity = np.eye(100, dtype=np.float32)
    got = kernels.matmul(handle, identity, 3)[:, :40].T
    most = np.repeat(np.abs(weights[:, :96]).reshape(40, 3, 32).max(2), 32, axis=1)
    # int4 has no step above its highest; scales kept in bfloat16 move the largest values of int8.
    furthest = 1.01 * steps if name == "int4" else 0.51 * steps + 0.004
    error = np.abs(got - weights)[:, :96] / most
    assert error.max() <= furthest
    assert error.mean() < 0.3 * steps
    kernels.free_matrix(handle)


@pytest.mark.parametrize("rows", [3, 40])
def test_values_that_are_not_numbers_spoil_their_row_alone(
    kernels: Kernels, isas: Sequence[str], rows: int
) -> None:
    a = normal(1, rows, 70)
    for isa in isas:
        kernels.select_isa(isa)
        with Packed(kernels, normal(0, 20, 70), 8, 32) as matrix:
            fine = matrix.times(a)
            for bad in (np.nan, np.inf, -np.inf):
                spoiled = a.copy()
                spoiled[1, 40] = bad
                got = matrix.times(spoiled)
                assert np.isnan(got[1]).all()
                others = [row for row in range(rows) if row != 1]
                assert np.array_equal(got[others], fine[others])


def test_packing_counts_what_is_not_finite(kernels: Kernels) -> None:
    weights = normal(0, 20, 33)
    weights[3, 4], weights[19, 32] = np.nan, np.inf
    handle = kernels.new_whole_matrix(20, 33, Whole("int4", 32, "bfloat16"))
    assert kernels.pack(handle, (0, 0, 20), pointer(weights), "float32") == 2
    scales = np.ones((20, 2), np.float32)
    scales[2, 1] = np.nan
    assert kernels.pack_scales(handle, (0, 0, 20), pointer(scales), "float32") == 1
    kernels.free_matrix(handle)


def test_wrong_calls_are_refused(kernels: Kernels) -> None:
    with pytest.raises(KernelError, match="multiples of 32"):
        kernels.new_whole_matrix(16, 64, Whole("int8", 48, "float32"))
    floats = kernels.new_matrix(16, 64)
    words = np.zeros((16, 16), np.int32)
    with pytest.raises(KernelError, match="holds floats"):
        kernels.pack_whole(floats, (0, 0, 16), pointer(words))
    with pytest.raises(KernelError, match="holds floats"):
        kernels.pack_scales(floats, (0, 0, 16), pointer(words), "float32")
    kernels.free_matrix(floats)
    whole = kernels.new_whole_matrix(16, 64, Whole("int8", 32, "float32"))
    with pytest.raises(KernelError, match="outside the matrix"):
        kernels.pack_whole(whole, (0, 8, 16), pointer(words))
    kernels.free_matrix(whole)


@pytest.mark.parametrize(("isa", "quickest"), [("avx2", "int7"), ("avx512", "int7"), ("portable", "int8")])
def test_the_quickest_activations(kernels: Kernels, isas: Sequence[str], isa: str, quickest: str) -> None:
    if isa not in isas:
        pytest.skip(f"this processor lacks {isa}")
    kernels.select_isa(isa)
    assert kernels.select_activations("auto") == quickest
    assert kernels.select_activations("int8") == "int8"
    with pytest.raises(KeyError):
        kernels.select_activations("int6")
