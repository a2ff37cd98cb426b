"""The adapters that a model has loaded, by name, and who is using them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from contract.faults import Fault, FaultKind

NONE = 0
"""In place of an adapter's number: the model as it is."""


class AdapterShelf:
    """An adapter that is taken away or replaced is freed when its last sequence is over."""

    def __init__(self, free: Callable[[int], None]) -> None:
        """``free`` is called from the thread that gave an adapter up last."""
        self._free = free
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._users: Counter[int] = Counter()
        self._loaded: set[int] = set()

    @property
    def names(self) -> list[str]:
        return sorted(self._numbers)

    def put(self, name: str, number: int) -> None:
        """Serve an adapter under this name, in place of one that had it."""
        with self._lock:
            before = self._numbers.get(name, NONE)
            self._numbers[name] = number
            self._loaded.add(number)
        self._free_unused(before)

    def remove(self, name: str) -> None:
        """Raises ``Fault`` when there is none of this name."""
        with self._lock:
            number = self._numbers.pop(name, NONE)
        if number == NONE:
            raise self._unknown(name)
        self._free_unused(number)

    def take(self, name: str | None) -> int:
        """The number of an adapter, for a sequence that will give it back. Raises ``Fault``."""
        if name is None:
            return NONE
        with self._lock:
            number = self._numbers.get(name, NONE)
            if number != NONE:
                self._users[number] += 1
                return number
        raise self._unknown(name)

    def give_back(self, number: int) -> None:
        if number == NONE:
            return
        with self._lock:
            self._users[number] -= 1
        self._free_unused(number)

    def _free_unused(self, number: int) -> None:
        with self._lock:
            in_use = self._users[number] > 0 or number in self._numbers.values()
            if in_use or number not in self._loaded:
                return
            self._loaded.remove(number)  # of two threads that find it unused, one frees it
            del self._users[number]
        self._free(number)

    def _unknown(self, name: str) -> Fault:
        known = ", ".join(self.names) or "none"
        message = f"the model has no adapter {name!r}; it has {known}"
        return Fault(FaultKind.NOT_FOUND, message, "load it, or name one that is loaded")
