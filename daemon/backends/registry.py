"""Backends by name. Nothing is imported before a backend is created, and that happens in its worker process.

Others add backends by entry points: group ``mindport.backends`` for token backends,
``mindport.tensor_backends`` for tensor backends; each entry is a factory without arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Literal

from contract.faults import Fault, FaultKind
from daemon.backends.base import TensorBackend, TokenBackend

Contract = Literal["token", "tensor"]

GROUPS: Mapping[Contract, str] = MappingProxyType(
    {"token": "mindport.backends", "tensor": "mindport.tensor_backends"}
)
_BUILT_IN: Mapping[str, tuple[Contract, str]] = MappingProxyType(
    {
        "mock": ("token", "daemon.backends.mock:MockBackend"),
        "ms": ("token", "daemon.backends.ms.backend:MsBackend"),
    }
)


def names() -> list[str]:
    """All backends that can be named, built in or installed."""
    installed = {entry.name for group in GROUPS.values() for entry in entry_points(group=group)}
    return sorted(installed | set(_BUILT_IN))


def contract_of(name: str) -> Contract:
    """Which of the two contracts a backend fulfils. Raises ``Fault``."""
    return _find(name)[0]


def create(name: str) -> TokenBackend | TensorBackend:
    """A fresh backend object. Imports its libraries: call this in a worker process. Raises ``Fault``."""
    _, entry = _find(name)
    try:
        backend: TokenBackend | TensorBackend = entry.load()()
    except ImportError as error:
        message = f'backend "{name}" cannot be imported: {error}'
        hint = f"install what it needs, for example: pip install 'mindport[{name}]'"
        raise Fault(FaultKind.INVALID_CONFIG, message, hint) from error
    return backend


def _find(name: str) -> tuple[Contract, EntryPoint]:
    if name in _BUILT_IN:
        contract, target = _BUILT_IN[name]
        return contract, EntryPoint(name, target, GROUPS[contract])
    for contract, group in GROUPS.items():
        for entry in entry_points(group=group, name=name):
            return contract, entry
    known = ", ".join(names())
    raise Fault(FaultKind.INVALID_CONFIG, f'there is no backend "{name}"', f"the known backends are: {known}")
