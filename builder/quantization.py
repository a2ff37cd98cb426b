"""Group-wise integer weights in compressed-tensors' ``pack-quantized`` form: what config.json says of them.

``X.weight`` [n, k] becomes ``X.weight_packed`` (32-bit words along k), ``X.weight_scale`` [n, k / group] and
``X.weight_shape``. Other engines read the same form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from builder.families.base import Family
from contract.faults import Fault, FaultKind

METHODS: Mapping[str, int] = MappingProxyType({"int8": 8, "int4": 4})
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP = 64
"""By the mean relative error of the demo model's layers in groups of 32, 64 and 128, and by their time.

The errors are 0.52, 0.58 and 0.64 % at 8 bits; at 4 bits 8.7, 9.5 and 10.2 %. There a prompt of 1024 tokens
takes 0.85 and 0.83 times as long in groups of 64 and 128 as in groups of 32, a token 0.93 and 0.90.
"""
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
CONFIG_KEY = "quantization_config"
"""Of config.json."""
_FORMAT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
_WORD_BITS = 32


@dataclass(frozen=True)
class Quantization:
    """How the linear layers of a model are stored."""

    bits: int
    group: int
    ignore: tuple[str, ...] = ()
    """Linear layers that stay as they are."""
    search_clip: bool = False
    """Try many scales for each group; the form of the result is the same."""

    @property
    def dtype(self) -> str:
        """``int8`` or ``int4``."""
        return f"int{self.bits}"

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], -(-shape[1] * self.bits // _WORD_BITS)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], -(-shape[1] // self.group)

    def to_config(self) -> dict[str, Any]:
        """The block ``quantization_config``."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": self.group,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "mse",
            "observer_kwargs": {},
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
        return {
            **_FORMAT,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def __str__(self) -> str:
        return f"{self.dtype} in groups of {self.group}, compressed-tensors pack-quantized"


def plan_quantization(
    method: str, group: int | None, family: Family, config: Mapping[str, Any], *, search_clip: bool = False
) -> Quantization:
    """Which layers are quantized: all that the group divides; the head at 8 bits only.

    At 4 bits the head loses most of all layers, and published checkpoints leave it as it is.
    """
    bits = METHODS[method]
    chosen = group or DEFAULT_GROUP
    modules = dict(family.linear_modules(config))
    kept = {name for name, width in modules.items() if width % chosen or (name == family.head and bits < 8)}
    if family.head not in modules:
        kept.add(family.head)  # it shares the embedding's table, and other engines still see a linear layer
    if kept >= modules.keys():
        message = f"no layer of the model has a width that groups of {chosen} divide"
        raise Fault(FaultKind.UNSUPPORTED, message, "choose a smaller --group-size, or leave out --quantize")
    return Quantization(bits, chosen, tuple(sorted(kept)), search_clip)


def read_quantization(config: Mapping[str, Any], where: str = "config.json") -> Quantization | None:
    """What a config.json says; ``None`` for plain weights. Raises ``Fault`` for any other form."""
    block = config.get(CONFIG_KEY)
    if block is None:
        return None
    try:
        weights = block["config_groups"]["group_0"]["weights"]
        group, bits = weights.get("group_size"), weights["num_bits"]
        plain = (weights.get("type"), weights.get("symmetric"), weights.get("strategy"))
        fine = (
            all(block.get(key) == value for key, value in _FORMAT.items())
            and len(block["config_groups"]) == 1
            and plain == ("int", True, "group")
            and weights.get("actorder") is None
            and bits in METHODS.values()
            and group in GROUP_SIZES
            and not block["config_groups"]["group_0"].get("input_activations")
            and not any(name.startswith("re:") for name in block.get("ignore") or [])
        )
    except (KeyError, TypeError, AttributeError):
        fine = False
    if not fine:
        method = block.get("quant_method") if isinstance(block, Mapping) else block
        message = f"{where} has quantized weights of a form that MindPort does not read ({method})"
        hint = "take the publisher's unquantized weights, and quantize them with: --quantize int4"
        raise Fault(FaultKind.UNSUPPORTED, message, hint)
    return Quantization(bits, group, tuple(block.get("ignore") or ()))


def quantized_modules(
    quantization: Quantization, family: Family, config: Mapping[str, Any]
) -> frozenset[str]:
    """The layers whose matrices are stored as integers."""
    return frozenset(name for name, _ in family.linear_modules(config) if name not in quantization.ignore)


def parameter_count(family: Family, config: Mapping[str, Any]) -> int:
    """Weights of a model of this config, however they are stored."""
    return sum(math.prod(shape) for _, shape in family.expected_tensors(config))


def expected_tensors(family: Family, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a checkpoint, quantized or not. Raises ``Fault``."""
    quantization = read_quantization(config)
    chosen = quantized_modules(quantization, family, config) if quantization else frozenset()
    for name, shape in family.expected_tensors(config):
        module = name.removesuffix(".weight")
        if quantization is None or module == name or module not in chosen:
            yield name, shape
            continue
        yield f"{module}.{PACKED}", quantization.packed_shape(shape)
        yield f"{module}.{SCALE}", quantization.scale_shape(shape)
        yield f"{module}.{SHAPE}", (2,)
