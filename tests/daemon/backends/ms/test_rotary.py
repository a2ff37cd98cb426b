"""Rotary bases and scalings against the formulas as transformers writes them, and ALiBi's slopes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.faults import Fault
from daemon.backends.ms.rotary import Rope, alibi_slopes

Double = npt.NDArray[np.float64]
DIM = 64


def frequencies(rope: Rope, prompt_len: int = 1) -> Double:
    base, _ = rope.at(prompt_len)
    plain = base ** (-np.arange(0, DIM, 2) / DIM)
    result: Double = plain / (np.array(rope.factors) if rope.factors else 1.0)
    return result


def rope_of(scaling: dict[str, Any] | None, context: int = 4096, **config: Any) -> Rope:
    known = {"rope_theta": 500000.0, "max_position_embeddings": 8192, "rope_scaling": scaling}
    return Rope.from_config({**known, **config}, DIM, context)


def plain(base: float = 500000.0) -> Double:
    result: Double = 1.0 / base ** (np.arange(0, DIM, 2) / DIM)
    return result


def test_without_scaling_only_the_base_matters() -> None:
    assert rope_of(None) == Rope(500000.0, dim=DIM)
    assert Rope.from_config({}, DIM, 100) == Rope(10000.0, dim=DIM)
    assert rope_of({"rope_type": "default"}).factors == ()


def test_rope_parameters_hold_base_and_scaling() -> None:
    parameters = {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0}
    rope = Rope.from_config({"rope_parameters": parameters}, DIM, 100)
    assert np.allclose(frequencies(rope), plain(1e6) / 4, rtol=1e-12)


@given(st.floats(1.5, 64), st.sampled_from([1.0, 2.0]), st.sampled_from([4.0, 8.0]))
def test_llama3(factor: float, low: float, high: float) -> None:
    old = 8192
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    rope = rope_of({**scaling, "original_max_position_embeddings": old}, max_position_embeddings=131072)
    wavelength = 2 * math.pi / plain()
    smooth = (old / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * plain() / factor + smooth * plain()
    expected = np.where(wavelength > old / low, plain() / factor, plain())
    medium = (wavelength >= old / high) & (wavelength <= old / low)
    assert np.allclose(frequencies(rope), np.where(medium, smoothed, expected), rtol=1e-9)
    assert rope.at(100000) == (500000.0, 1.0)


@given(st.floats(1.5, 64), st.booleans())
def test_yarn(factor: float, truncate: bool) -> None:
    scaling = {"type": "yarn", "factor": factor, "original_max_position_embeddings": 4096}
    rope = rope_of({**scaling, "truncate": truncate})

    def correction(turns: float) -> float:
        return DIM * math.log(4096 / (turns * 2 * math.pi)) / (2 * math.log(500000.0))

    low, high = correction(32), correction(1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    ramp = np.clip((np.arange(DIM // 2) - max(low, 0)) / (min(high, DIM - 1) - max(low, 0)), 0, 1)
    expected = plain() / factor * ramp + plain() * (1 - ramp)
    assert np.allclose(frequencies(rope), expected, rtol=1e-9)
    assert rope.scale == pytest.approx(0.1 * math.log(factor) + 1)


@pytest.mark.parametrize(
    ("extra", "scale"),
    [
        ({"attention_factor": 0.7}, 0.7),
        ({"mscale": 0.707, "mscale_all_dim": 1.0}, (0.0707 * math.log(8) + 1) / (0.1 * math.log(8) + 1)),
    ],
)
def test_yarn_scales_attention_as_told(extra: dict[str, float], scale: float) -> None:
    assert rope_of({"rope_type": "yarn", "factor": 8.0, **extra}).scale == pytest.approx(scale)


def test_dynamic_grows_the_base_beyond_the_trained_length() -> None:
    scaling = {"type": "dynamic", "factor": 2.0}
    rope = rope_of(scaling, rope_theta=1e6, max_position_embeddings=32768)
    assert rope.at(32768) == (1e6, 1.0)
    base, scale = rope.at(40000)
    assert base == pytest.approx(1e6 * (2 * 40000 / 32768 - 1) ** (DIM / (DIM - 2)))
    assert scale == 1.0


@pytest.mark.parametrize(("context", "which"), [(4096, "short"), (4097, "long"), (16384, "long")])
@pytest.mark.parametrize(("longest", "stretch"), [(4096, 1), (16384, 4)])
def test_longrope_takes_the_factors_of_the_length_served(
    context: int, which: str, longest: int, stretch: float
) -> None:
    short, long = [1.0 + j / 100 for j in range(DIM // 2)], [2.0 + j for j in range(DIM // 2)]
    scaling = {"type": "longrope", "short_factor": short, "long_factor": long}
    lengths = {"original_max_position_embeddings": 4096, "max_position_embeddings": longest}
    rope = rope_of(scaling, context, **lengths)
    assert rope.factors == tuple(short if which == "short" else long)
    assert rope.scale == pytest.approx(math.sqrt(1 + math.log(stretch) / math.log(4096)))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "spiral"}, "of type 'spiral', which is not one of default, linear"),
        ({"type": "linear"}, "'linear' that makes no sense: KeyError"),
        ({"type": "linear", "factor": "much"}, "'linear' that makes no sense: ValueError"),
        ({"type": "linear", "factor": 0}, "factors must be positive"),
        ({"type": "dynamic", "factor": -2.0}, "factors must be positive"),
        ({"type": "yarn", "factor": float("nan")}, "factors must be positive"),
        ({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "1 factors for 32"),
        ("linear", "rope_scaling 'linear'"),
    ],
)
def test_what_makes_no_sense_is_a_fault(scaling: Any, message: str) -> None:
    with pytest.raises(Fault, match=message):
        rope_of(scaling)


def test_slopes_of_alibi() -> None:
    assert alibi_slopes(8) == pytest.approx([2.0**-k for k in range(1, 9)])
    assert alibi_slopes(6) == pytest.approx([0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125])
    forty = alibi_slopes(40)
    assert forty[:4] == pytest.approx([0.84089642, 0.70710678, 0.59460356, 0.5])
    assert forty[31:34] == pytest.approx([0.00390625, 0.91700404, 0.77110541])
    assert forty[39] == pytest.approx(0.27262693)
