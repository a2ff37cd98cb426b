"""What HTTP and gRPC may ask of the daemon. Both transports see this protocol and nothing below it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from contract.generation import Event, GenerateRequest
from daemon.repository.status import ModelStatus


class Service(Protocol):
    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Answer one request: ``Started``, ``Delta``..., then exactly one terminal event.

        Whatever is wrong before the request is accepted is raised as ``Fault`` by the first ``anext``;
        afterwards it is a ``Failed`` event. Closing the generator early cancels in the engine.
        """
        ...

    def models(self) -> list[ModelStatus]:
        """Every version in the repository, in order of name and version."""
        ...

    def find(self, model: str | None, version: str = "") -> ModelStatus:
        """The version a request for ``model`` (``NAME`` or ``NAME@VERSION``) is answered by.

        Raises ``Fault``: NOT_FOUND naming the models there are, or NOT_READY with the state.
        """
        ...

    def live(self) -> bool: ...

    def ready(self) -> bool:
        """Every startup model is ready and the daemon is not stopping."""
        ...

    async def load(self, name: str, version: str = "") -> None:
        """Load a model, or reload it: the old one serves until the new is ready. Returns when ready."""
        ...

    async def unload(self, name: str, version: str = "") -> None:
        """Drain and unload. Unloading what is not loaded does nothing."""
        ...

    async def load_adapter(self, model: str | None, name: str, directory: str) -> None:
        """Serve a LoRA adapter beside a loaded model (``None``: the default one) under its own name.

        Raises ``Fault``: no such folder or model, damaged, not for this model, or the name is taken.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Requests in flight keep it to their end. Raises ``Fault`` when there is none of this name."""
        ...

    async def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Triton's model statistics as JSON-ready data, a version each."""
        ...

    async def tokenize(self, model: str | None, text: str) -> list[int]: ...

    async def cancel(self, request_id: str) -> bool:
        """Cancel a running request by its id; ``False`` when there is none."""
        ...
