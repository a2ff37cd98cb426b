from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends import registry
from daemon.backends.mock import MockBackend


def test_built_in_backends_are_known() -> None:
    assert {"mock", "ms"} <= set(registry.names())
    assert registry.contract_of("ms") == "token"


def test_create_gives_a_fresh_object() -> None:
    first, second = registry.create("mock"), registry.create("mock")
    assert isinstance(first, MockBackend)
    assert first is not second


def test_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(Fault) as caught:
        registry.create("mindie")
    assert caught.value.kind is FaultKind.INVALID_CONFIG
    assert "mindie" in caught.value.message
    assert "mock, ms" in caught.value.hint


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntryPoints(
        [
            EntryPoint("echo", "daemon.backends.mock:MockBackend", "mindport.backends"),
            EntryPoint("boxes", "daemon.backends.mock:MockBackend", "mindport.tensor_backends"),
            EntryPoint("absent", "no_such_library.backend:Backend", "mindport.backends"),
        ]
    )

    def select(**params: Any) -> EntryPoints:
        return entries.select(**params)

    monkeypatch.setattr(registry, "entry_points", select)


@pytest.mark.usefixtures("installed")
def test_entry_points_add_backends_of_both_contracts() -> None:
    assert {"echo", "boxes"} <= set(registry.names())
    assert registry.contract_of("echo") == "token"
    assert registry.contract_of("boxes") == "tensor"
    assert isinstance(registry.create("echo"), MockBackend)


@pytest.mark.usefixtures("installed")
def test_backend_whose_library_is_missing_says_what_to_install() -> None:
    with pytest.raises(Fault, match="no_such_library") as caught:
        registry.create("absent")
    assert "pip install" in caught.value.hint
