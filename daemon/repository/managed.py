"""What the registry and the service need of a backend beyond ``TokenBackend``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from contract.faults import Fault
from daemon.backends.base import ModelSpec, TokenBackend, TokenPusher


class ManagedBackend(TokenBackend, TokenPusher, Protocol):
    """A token backend that pushes, and whose worker process can be watched."""

    @property
    def pid(self) -> int | None:
        """Of the worker process; ``None`` before it starts and in process."""
        ...

    async def died(self) -> Fault | None:
        """Wait for the end of a loaded worker: the fault if it crashed, ``None`` if it was unloaded."""
        ...


BackendFactory = Callable[[ModelSpec], ManagedBackend]
"""Makes an unloaded backend. Raises ``Fault`` if this installation lacks it."""
