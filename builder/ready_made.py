"""What a config.json says of weights that GPTQ or AWQ has quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from contract.faults import Fault, FaultKind

BESIDE = ("quantize_config.json", "quant_config.json")
"""Where older writers put what is now in config.json."""
WHOLE_ROW = -1
_HINT = "take the publisher's unquantized weights, and quantize them with: --quantize int4"


@dataclass(frozen=True)
class ReadyMade:
    """How the integers lie, and how they are meant."""

    method: Literal["gptq", "awq"]
    bits: int
    group: int
    """Values along a row that share a scale; ``WHOLE_ROW`` for all of them."""
    zero_offset: int
    """GPTQ's first form stores zero points less one."""
    ordered: bool = False
    """By activations: which inputs share a group says ``g_idx``."""

    def __str__(self) -> str:
        shared = "rows" if self.group == WHOLE_ROW else f"groups of {self.group}"
        return f"{self.method.upper()}'s integers of {self.bits} bits in {shared}"


def read_ready_made(block: Any, where: str) -> ReadyMade | None:
    """The form that ``quantization_config`` describes; ``None`` when it is neither's. Raises ``Fault``."""
    if not isinstance(block, Mapping):
        return None
    method = block.get("quant_method") or _method_of_older(block)
    if method == "gptq":
        return _gptq(block, where)
    return _awq(block, where) if method == "awq" else None


def _method_of_older(block: Mapping[str, Any]) -> str | None:
    if "w_bit" in block or "q_group_size" in block:
        return "awq"
    return "gptq" if "bits" in block and "desc_act" in block else None


def _gptq(block: Mapping[str, Any], where: str) -> ReadyMade:
    bits, group = block.get("bits"), block.get("group_size", WHOLE_ROW)
    layout = block.get("checkpoint_format") or "gptq"
    if layout not in ("gptq", "gptq_v2") or block.get("is_marlin_format"):
        raise _unsupported(where, f"checkpoint_format is {layout!r}, not 'gptq' or 'gptq_v2'")
    if block.get("dynamic"):
        raise _unsupported(where, "'dynamic' gives layers forms of their own")
    if type(bits) is not int or bits not in (4, 8):
        raise _unsupported(where, f"GPTQ with bits {bits!r}, not 4 or 8")
    offset = 1 if layout == "gptq" else 0
    return ReadyMade("gptq", bits, _group(group, where), offset, bool(block.get("desc_act")))


def _awq(block: Mapping[str, Any], where: str) -> ReadyMade:
    bits = block.get("bits", block.get("w_bit"))
    group = block.get("group_size", block.get("q_group_size", WHOLE_ROW))
    version, backend = str(block.get("version") or "gemm").lower(), block.get("backend") or "autoawq"
    if version != "gemm" or backend != "autoawq":
        raise _unsupported(where, f"AWQ of version {version!r} by {backend!r}, not 'gemm' by 'autoawq'")
    if type(bits) is not int or bits != 4:
        raise _unsupported(where, f"AWQ with bits {bits!r}, not 4")
    return ReadyMade("awq", bits, _group(group, where), 0)


def _group(group: Any, where: str) -> int:
    if isinstance(group, bool) or not isinstance(group, int) or (group != WHOLE_ROW and group <= 0):
        raise _unsupported(where, f"group_size is {group!r}, not a number of weights or -1")
    return group


def _unsupported(where: str, what: str) -> Fault:
    message = f"{where} has quantized weights of a form that MindPort does not read: {what}"
    return Fault(FaultKind.UNSUPPORTED, message, _HINT)
