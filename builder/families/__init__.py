"""The families of models the builder knows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from builder.families.base import Family
from builder.families.telechat import TELECHAT
from builder.nearest import did_you_mean
from contract.faults import Fault, FaultKind

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (TELECHAT,)})


def family_named(name: str) -> Family:
    """The family of this name. Raises ``Fault``."""
    if name not in FAMILIES:
        hint = f"{did_you_mean(name, FAMILIES)} known: {', '.join(FAMILIES)}"
        raise Fault(FaultKind.INVALID_CONFIG, f"there is no family {name!r}", hint)
    return FAMILIES[name]
