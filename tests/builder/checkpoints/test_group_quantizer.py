"""Rounding and packing, read back by a reader written from the format's description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from builder.checkpoints.dtypes import widened
from builder.checkpoints.group_quantizer import pack, quantize_rows

BITS = st.sampled_from([4, 8])
GROUPS = st.sampled_from([32, 64, 128])
DTYPES = st.sampled_from(["BF16", "F16", "F32"])
SEEDS = st.integers(0, 2**32 - 1)


def unpack(data: bytes, bits: int, columns: int) -> Any:
    """Words of 32 bits, lowest bits first, half the range subtracted."""
    words = np.frombuffer(data, "<u4").astype(np.uint64)
    shifts = np.arange(0, 32, bits, dtype=np.uint64)
    unsigned = (words[:, None] >> shifts) & np.uint64((1 << bits) - 1)
    return (unsigned.astype(np.int64) - (1 << (bits - 1))).reshape(-1, columns)


def test_the_published_example() -> None:
    """1, 2, 0, 0 of eight bits are 129, 130, 128, 128, the first in the lowest byte."""
    data = pack(np.array([[1, 2, 0, 0]], np.int8), 8)
    assert int.from_bytes(data, "little") == 0x80808281
    data = pack(np.array([[-8, 7, 0, 1, 2, 3, 4, 5]], np.int8), 4)
    assert int.from_bytes(data, "little") == 0xDCBA98F0


@given(BITS, st.integers(1, 5), st.integers(1, 9), SEEDS)
def test_what_is_packed_comes_back(bits: int, rows: int, words: int, seed: int) -> None:
    half, columns = 1 << (bits - 1), words * 32 // bits
    values = np.random.default_rng(seed).integers(-half, half, (rows, columns)).astype(np.int8)
    data = pack(values, bits)
    assert len(data) == rows * words * 4
    np.testing.assert_array_equal(unpack(data, bits, columns), values)


def dequantized(rows: Any, bits: int, group: int, dtype: str) -> tuple[Any, Any, Any]:
    """The values as a reader computes them, their integers and the scale of each."""
    found = quantize_rows(rows, bits, group, dtype)
    scales = np.repeat(widened(found.scales, dtype).reshape(len(rows), -1), group, axis=1)
    return found.values * scales, found.values, scales


@given(BITS, GROUPS, DTYPES, st.tuples(st.integers(1, 7), st.integers(1, 4)), SEEDS)
def test_what_is_not_clipped_is_off_by_half_a_step_at_most(
    bits: int, group: int, dtype: str, size: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    magnitude = 10.0 ** rng.uniform(-4, 3)
    weights = (rng.standard_normal((size[0], size[1] * group)) * magnitude).astype(np.float32)
    got, values, scales = dequantized(weights, bits, group, dtype)
    half = 1 << (bits - 1)
    inside = (values > -half) & (values < half - 1)
    assert (np.abs(got - weights) <= scales * 0.5001)[inside].all()
    assert (scales > 0).all()
    error = np.square(got - weights).sum() / np.square(weights).sum()
    assert error < (0.04 if bits == 4 else 0.0004)


@given(arrays(np.float32, (2, 64), elements=st.floats(-(2.0**99), 2.0**99, width=32)), BITS, DTYPES)
def test_any_finite_weights_give_finite_ones(weights: Any, bits: int, dtype: str) -> None:
    with np.errstate(over="ignore"):
        stored = widened(np.float16(weights).tobytes(), "F16") if dtype == "F16" else weights.reshape(-1)
    rows = np.nan_to_num(stored.reshape(2, 64), posinf=6e4, neginf=-6e4)
    got, _, _ = dequantized(rows, bits, 32, dtype)
    assert np.isfinite(got).all()


def test_values_that_fit_exactly_are_exact() -> None:
    rows = np.tile(np.arange(-8, 8, dtype=np.float32), (3, 4)) * np.float32(0.25)
    got, _, _ = dequantized(rows, 4, 32, "BF16")
    np.testing.assert_array_equal(got, rows)
    zeros = np.zeros((2, 32), np.float32)
    np.testing.assert_array_equal(dequantized(zeros, 4, 32, "F16")[0], zeros)


def test_an_outlier_costs_its_group_only() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 128)).astype(np.float32)
    rows[0, 5] = 1000.0
    got, _, _ = dequantized(rows, 4, 32, "F32")
    assert np.abs(got - rows)[0, 32:].max() < 0.5
    assert np.abs(got - rows)[0, :32].max() > 0.5


@pytest.mark.parametrize("bits", [4, 8])
def test_a_group_depends_on_itself_alone(bits: int) -> None:
    rows = np.random.default_rng(3).standard_normal((12, 96)).astype(np.float32)
    whole = quantize_rows(rows, bits, 32, "BF16")
    parts = [quantize_rows(rows[first : first + 5], bits, 32, "BF16") for first in range(0, 12, 5)]
    assert b"".join(pack(part.values, bits) for part in parts) == pack(whole.values, bits)
    assert b"".join(part.scales for part in parts) == whole.scales


@pytest.mark.parametrize("bits", [4, 8])
def test_trying_scales_is_better_than_taking_the_first(bits: int) -> None:
    rows = np.random.default_rng(4).standard_normal((64, 128)).astype(np.float32)
    got, _, _ = dequantized(rows, bits, 32, "F32")
    half = 1 << (bits - 1)
    groups = rows.reshape(-1, 32)
    scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32(half - 0.5)
    plain = np.clip(np.rint(groups / scale), -half, half - 1) * scale
    assert np.square(got - rows).sum() < 0.97 * np.square(plain - groups).sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_searching_is_never_worse_for_any_group(bits: int) -> None:
    rows = np.random.default_rng(5).standard_t(3, (64, 128)).astype(np.float32)
    errors = []
    for search in (False, True):
        found = quantize_rows(rows, bits, 32, "BF16", search_clip=search)
        scales = np.repeat(widened(found.scales, "BF16").reshape(len(rows), -1), 32, axis=1)
        errors.append(np.square(found.values * scales - rows).reshape(-1, 32).sum(axis=1))
    assert (errors[1] <= errors[0] * 1.00001).all()
    assert errors[1].sum() < 0.99 * errors[0].sum()
