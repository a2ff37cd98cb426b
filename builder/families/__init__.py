"""The families of models the builder knows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from builder.families.baichuan import BAICHUAN
from builder.families.base import Family
from builder.families.chatglm import CHATGLM
from builder.families.fm9g import FM9G
from builder.families.internlm import INTERNLM2, INTERNLM3
from builder.families.llama import LLAMA, MISTRAL
from builder.families.qwen import QWEN2, QWEN3
from builder.families.telechat import TELECHAT
from builder.nearest import did_you_mean
from contract.faults import Fault, FaultKind

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            TELECHAT,
            LLAMA,
            QWEN2,
            QWEN3,
            MISTRAL,
            INTERNLM2,
            INTERNLM3,
            FM9G,
            CHATGLM,
            BAICHUAN,
        )
    }
)


def family_named(name: str) -> Family:
    """The family of this name. Raises ``Fault``."""
    if name not in FAMILIES:
        hint = f"{did_you_mean(name, FAMILIES)} known: {', '.join(FAMILIES)}"
        raise Fault(FaultKind.INVALID_CONFIG, f"there is no family {name!r}", hint)
    return FAMILIES[name]


def family_of_config(config: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json names in ``architectures`` or ``model_type``. Raises ``Fault``."""
    stated = config.get("architectures")
    names = [str(name) for name in stated] if isinstance(stated, list) else []
    for family in FAMILIES.values():
        if {name.lower() for name in names} & {name.lower() for name in family.architectures}:
            return family
    model_type = config.get("model_type")
    for family in FAMILIES.values():
        if not names and model_type in family.model_types:
            return family
    known = "; ".join(f"{family.name} ({', '.join(family.architectures)})" for family in FAMILIES.values())
    said = f"architectures {names}" if names else f"model_type {model_type!r}"
    message = f"{where} has {said}, which MindPort has no network for"
    raise Fault(FaultKind.UNSUPPORTED, message, f"supported families: {known}")
