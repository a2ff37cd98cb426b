"""Live and ready: whether the process works, and whether it should be sent requests."""

from __future__ import annotations

from collections.abc import Callable


class Health:
    """Live from the first moment; ready between the end of the start and the beginning of the stop."""

    def __init__(self, models_ready: Callable[[], bool]) -> None:
        self._models_ready = models_ready
        self._started = False
        self._stopping = False

    def started(self) -> None:
        """The startup models have been loaded, as far as they could be."""
        self._started = True

    def stopping(self) -> None:
        self._stopping = True

    @property
    def live(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        return self._started and not self._stopping and self._models_ready()
