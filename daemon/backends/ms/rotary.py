"""How positions turn queries and keys: bases, scalings, slopes, as any family's config.json says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from contract.faults import Fault, FaultKind

Scaling = Mapping[str, Any]
"""The block ``rope_scaling`` (or ``rope_parameters``) of a config.json."""

_DEFAULT_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary embedding of a model."""

    base: float
    factors: tuple[float, ...] = ()
    """What each frequency is divided by; empty: by nothing."""
    scale: float = 1.0
    """Multiplies cos and sin."""
    growth: tuple[float, int] | None = None
    """Of dynamic NTK: its factor, and the length up to which the base stays."""
    dim: int = 0
    """Dimensions of a head that turn."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dim: int, context: int) -> Rope:
        """What config.json says of heads of which ``dim`` dimensions turn, for sequences up to ``context``.

        Reads ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``, which holds both. Raises ``Fault``.
        """
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise _unknown(f"rope_scaling {scaling!r}")
        base = float(scaling.get("rope_theta") or config.get("rope_theta") or _DEFAULT_BASE)
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        name = "original_max_position_embeddings"
        longest = int(config.get("max_position_embeddings") or context)
        trained = int(scaling.get(name) or config.get(name) or longest)
        wanted = _Wanted(scaling, base, dim, context, (trained, longest))
        make = _KINDS.get(kind)
        if make is None:
            raise _unknown(f"a rope_scaling of type {kind!r}, which is not one of {', '.join(_KINDS)}")
        try:
            made = make(wanted)
            divisors = (*made.factors, made.growth[0] if made.growth else 1.0, made.scale)
            if not all(math.isfinite(value) and value > 0.0 for value in divisors):
                raise ValueError("factors must be positive numbers")
            return made
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise _unknown(f"a rope_scaling of type {kind!r} that makes no sense: {error!r}") from None

    def at(self, prompt_len: int) -> tuple[float, float]:
        """Base and scale of a sequence with a prompt of this length."""
        if self.growth is None or prompt_len <= self.growth[1]:
            return self.base, self.scale
        factor, length = self.growth
        stretch = factor * prompt_len / length - (factor - 1.0)
        return self.base * stretch ** (self.dim / (self.dim - 2)), self.scale


def _unknown(what: str) -> Fault:
    return Fault(FaultKind.INVALID_MODEL, f"config.json has {what}")


@dataclass(frozen=True, slots=True)
class _Wanted:
    scaling: Scaling
    base: float
    dim: int
    context: int
    """Positions that are served."""
    lengths: tuple[int, int]
    """Positions the model was trained for, and those it is stretched to."""

    @property
    def trained(self) -> int:
        return self.lengths[0]

    def number(self, name: str) -> float:
        return float(self.scaling[name])

    def frequencies(self) -> list[float]:
        return [self.base ** (-2.0 * j / self.dim) for j in range(self.dim // 2)]


def _plain(wanted: _Wanted) -> Rope:
    return Rope(wanted.base, dim=wanted.dim)


def _linear(wanted: _Wanted) -> Rope:
    return Rope(wanted.base, (wanted.number("factor"),) * (wanted.dim // 2), dim=wanted.dim)


def _dynamic(wanted: _Wanted) -> Rope:
    return Rope(wanted.base, growth=(wanted.number("factor"), wanted.trained), dim=wanted.dim)


def _llama3(wanted: _Wanted) -> Rope:
    factor, low, high = (wanted.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))

    def divisor(frequency: float) -> float:
        turns = wanted.trained * frequency / (2.0 * math.pi)
        if turns < low:
            return factor
        if turns > high:
            return 1.0
        kept = (turns - low) / (high - low)
        return 1.0 / ((1.0 - kept) / factor + kept)

    return Rope(wanted.base, tuple(divisor(f) for f in wanted.frequencies()), dim=wanted.dim)


def _yarn(wanted: _Wanted) -> Rope:
    factor, half = wanted.number("factor"), wanted.dim // 2

    def dimension(turns: float) -> float:
        length = wanted.trained / (turns * 2.0 * math.pi)
        return wanted.dim * math.log(length) / (2.0 * math.log(wanted.base))

    first = dimension(float(wanted.scaling.get("beta_fast") or 32))
    last = dimension(float(wanted.scaling.get("beta_slow") or 1))
    if wanted.scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, wanted.dim - 1)
    if first == last:
        last += 0.001
    slowed = [min(1.0, max(0.0, (j - first) / (last - first))) for j in range(half)]
    factors = tuple(1.0 / (share / factor + 1.0 - share) for share in slowed)
    return Rope(wanted.base, factors, _yarn_scale(wanted.scaling, factor), dim=wanted.dim)


def _yarn_scale(scaling: Scaling, factor: float) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    one, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return grown(float(one)) / grown(float(all_dims)) if one and all_dims else grown(1.0)


def _longrope(wanted: _Wanted) -> Rope:
    """The long factors when sequences may be longer than those of the training."""
    stretched = wanted.context > wanted.trained
    factors = tuple(map(float, wanted.scaling["long_factor" if stretched else "short_factor"]))
    if len(factors) != wanted.dim // 2:
        raise ValueError(f"{len(factors)} factors for {wanted.dim // 2} frequencies")
    stretch = float(wanted.scaling.get("factor") or wanted.lengths[1] / wanted.trained)
    scale = wanted.scaling.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1.0 + math.log(stretch) / math.log(wanted.trained)) if stretch > 1.0 else 1.0
    return Rope(wanted.base, factors, float(scale), dim=wanted.dim)


_KINDS: Mapping[str, Callable[[_Wanted], Rope]] = MappingProxyType(
    {
        "default": _plain,
        "linear": _linear,
        "dynamic": _dynamic,
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _longrope,
    }
)


def dynamic_ntk(
    length: int, *, dim: int, training_len: int, base_len: int, base: float = _DEFAULT_BASE
) -> tuple[float, float]:
    """Rotary base and scale of a sequence of ``length`` tokens, by TeleChat2's formula.

    ``S = max(length, training_len)``; ``alpha = max(2^ceil(log2(S / base_len) + 1) - 1, 1)``; the base grows
    by ``alpha^(dim / (dim - 2))`` and cos and sin by ``0.1 ln(S / training_len) + 1``.
    """
    span = max(length, training_len)
    alpha = max(2.0 ** math.ceil(math.log2(span / base_len) + 1.0) - 1.0, 1.0)
    scale = 0.1 * math.log(span / training_len) + 1.0 if span > training_len else 1.0
    return base * alpha ** (dim / (dim - 2)), scale


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """ALiBi's slope of each head."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * k / power) for k in range(1, power + 1)]
    between = [2.0 ** (-4.0 * k / power) for k in range(1, 2 * power + 1, 2)]
    return tuple((slopes + between)[:heads])
