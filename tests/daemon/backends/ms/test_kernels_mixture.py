"""A mixture of experts: routing, shares, biases, and rows that do not know who else is in the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.backends.ms import kernels as k
from daemon.backends.ms.kernels import FORMATS, FloatArray, KernelError, Kernels, Whole, pointer

Double = npt.NDArray[np.float64]
FORMAT_NAMES = ("float32", "bfloat16", "float16", "int8", "int4")
fast = settings(max_examples=30, deadline=None, derandomize=True)


@dataclass
class Mixture:
    """A mixture block with random weights and its NumPy form."""

    library: Kernels
    experts: int
    active: int
    hidden: int = 40
    inner: int = 24
    renormalise: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.experts * 10 + self.active)
        library, hidden, inner = self.library, self.hidden, self.inner
        self.model = library.new_model(512, 1, 1)
        numbers = (k.MIXTURE, hidden, inner, 0, 0, 0, 0, 0, self.experts, self.active, self.renormalise)
        self.block = library.new_block(self.model, numbers, 1e-5, 0.5)

        def random(*shape: int) -> FloatArray:
            return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)

        self.norm = 1 + random(hidden)
        self.router = random(self.experts, hidden)
        self.gate, self.up = (random(self.experts, inner, hidden) for _ in range(2))
        self.down = random(self.experts, hidden, inner)
        self.down_bias = random(self.experts, hidden)
        library.set_vector(self.block, k.NORM, self.norm, size=hidden)
        self._set(k.IN_MATRIX, [self.router], "float32")
        for expert in range(self.experts):
            matrices, vectors = k.MATRICES * (expert + 1), k.VECTORS * (expert + 1)
            self._set(matrices + k.IN_MATRIX, [self.gate[expert], self.up[expert]], self.dtype)
            self._set(matrices + k.OUT_MATRIX, [self.down[expert]], self.dtype)
            library.set_vector(self.block, vectors + k.OUT_BIAS, self.down_bias[expert], size=hidden)

    def _set(self, slot: int, parts: list[FloatArray], dtype: str) -> None:
        library, (rows, cols) = self.library, parts[0].shape
        if dtype in FORMATS:
            matrix = library.new_matrix(rows, cols, parts=len(parts), dtype=dtype)
        else:
            matrix = library.new_whole_matrix(rows, cols, Whole(dtype, 32, "float32"), parts=len(parts))
        for part, weights in enumerate(parts):
            library.pack(matrix, (part, 0, rows), pointer(np.ascontiguousarray(weights)), "float32")
        library.set_matrix(self.block, slot, matrix)
        library.free_matrix(matrix)

    def __enter__(self) -> Mixture:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.free_model(self.model)

    def run(self, x: FloatArray) -> FloatArray:
        shape = np.array([(len(x), 0, len(x), len(x))], np.int64)
        self.library.begin_step(
            self.model, shape, np.array([[1e4, 1.0]]), np.zeros(len(x), np.int32)
        )  # blocks of 16 positions, more than enough
        out = np.empty_like(x)
        self.library.run_block(self.block, x, out)
        return out

    def reference(self, x: FloatArray) -> Double:
        wide = x.astype(np.float64)
        normed = wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + 1e-5) * self.norm
        scores = normed @ self.router.T.astype(np.float64)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        out = wide.copy()
        for row, share in enumerate(shares):
            best = np.argsort(-share, kind="stable")[: self.active]
            total = share[best].sum() + 1e-9 if self.renormalise and self.active > 1 else 1.0
            for expert in best:
                gate, up = self.gate[expert] @ normed[row], self.up[expert] @ normed[row]
                branch = self.down[expert] @ (gate / (1 + np.exp(-gate)) * up) + self.down_bias[expert]
                out[row] += 0.5 * share[expert] / total * branch
        return out


def inputs(seed: int, rows: int, hidden: int = 40) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, hidden), dtype=np.float32)


@fast
@given(
    experts=st.sampled_from([1, 2, 7, 16, 33]),
    active=st.integers(1, 6),
    rows=st.sampled_from([1, 2, 5, 40]),
    renormalise=st.booleans(),
)
def test_a_mixture_is_what_numpy_says(
    kernels: Kernels, experts: int, active: int, rows: int, renormalise: bool
) -> None:
    x = inputs(rows, rows)
    with Mixture(kernels, experts, min(active, experts), renormalise=renormalise) as mixture:
        got, expected = mixture.run(x), mixture.reference(x)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("bfloat16", 1e-2), ("float16", 1e-3), ("int8", 2e-2), ("int4", 2e-1)]
)
def test_other_formats_lose_no_more_than_that(kernels: Kernels, dtype: str, tolerance: float) -> None:
    x = inputs(1, 30, 64)
    with Mixture(kernels, 8, 2, hidden=64, inner=96, dtype=dtype) as mixture:
        got, expected = mixture.run(x), mixture.reference(x)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", FORMAT_NAMES)
def test_a_row_alone_any_isa_any_threads_gives_the_same_bits(
    kernels: Kernels, isas: Sequence[str], dtype: str
) -> None:
    x = inputs(2, 70, 64)
    results = []
    with Mixture(kernels, 8, 3, hidden=64, inner=48, dtype=dtype) as mixture:
        for isa in isas:
            kernels.select_isa(isa)
            for threads in (1, 3):
                kernels.threads = threads
                results += [mixture.run(x), np.concatenate([mixture.run(x[:1]), mixture.run(x[1:])])]
    assert all(np.array_equal(results[0], result) for result in results)


def test_of_equal_experts_the_first_are_taken(kernels: Kernels) -> None:
    x = inputs(3, 4)
    with Mixture(kernels, 6, 2) as mixture:
        mixture.router[:] = mixture.router[0]
        mixture._set(k.IN_MATRIX, [mixture.router], "float32")
        got, expected = mixture.run(x), mixture.reference(x)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_row_of_nan_leaves_the_others_alone(kernels: Kernels) -> None:
    x = inputs(4, 5)
    with Mixture(kernels, 6, 2) as mixture:
        clean = mixture.run(x)
        x[2] = np.nan
        got = mixture.run(x)
    assert np.isnan(got[2]).all()
    assert np.array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("active", [0, 5])
def test_active_experts_must_exist(kernels: Kernels, active: int) -> None:
    model = kernels.new_model(8, 1, 1)
    with pytest.raises(KernelError, match="active experts"):
        kernels.new_block(model, (k.MIXTURE, 8, 8, 0, 0, 0, 0, 0, 4, active, 1), 1e-5, 1.0)
    kernels.free_model(model)
