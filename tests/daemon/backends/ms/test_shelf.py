"""When adapters are freed: after the last who uses them, and once."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.ms import shelf as shelf_module
from daemon.backends.ms.shelf import NONE, AdapterShelf


@pytest.fixture
def freed() -> list[int]:
    return []


@pytest.fixture
def shelf(freed: list[int]) -> AdapterShelf:
    return AdapterShelf(freed.append)


class YieldingLock:
    """Lets others run after each release."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        time.sleep(0.001)


def test_an_adapter_goes_with_its_last_user(shelf: AdapterShelf, freed: list[int]) -> None:
    shelf.put("pirate", 7)
    first, second = shelf.take("pirate"), shelf.take("pirate")
    shelf.remove("pirate")
    shelf.give_back(first)
    assert freed == []
    shelf.give_back(second)
    assert freed == [7]


def test_a_replaced_adapter_serves_those_who_have_it(shelf: AdapterShelf, freed: list[int]) -> None:
    shelf.put("pirate", 7)
    old = shelf.take("pirate")
    shelf.put("pirate", 8)
    assert (old, shelf.take("pirate"), freed) == (7, 8, [])
    shelf.give_back(old)
    assert freed == [7]
    assert shelf.names == ["pirate"]


def test_the_model_as_it_is_is_never_freed(shelf: AdapterShelf, freed: list[int]) -> None:
    assert shelf.take(None) == NONE
    shelf.give_back(NONE)
    assert freed == []


def test_unknown_names_are_refused(shelf: AdapterShelf) -> None:
    shelf.put("pirate", 7)
    for ask in (shelf.take, shelf.remove):
        with pytest.raises(Fault, match="no adapter 'sailor'; it has pirate") as caught:
            ask("sailor")
        assert caught.value.kind is FaultKind.NOT_FOUND


def test_two_threads_that_give_up_an_adapter_free_it_once(
    freed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "threading", SimpleNamespace(Lock=YieldingLock))
    shelf, barrier = AdapterShelf(freed.append), threading.Barrier(2)
    rounds = range(1, 11)

    def give_back() -> None:
        for number in rounds:
            barrier.wait()
            shelf.give_back(number)
            barrier.wait()

    thread = threading.Thread(target=give_back)
    thread.start()
    for number in rounds:
        shelf.put("pirate", number)
        assert shelf.take("pirate") == number
        barrier.wait()
        shelf.remove("pirate")
        barrier.wait()
    thread.join()
    assert freed == list(rounds)
