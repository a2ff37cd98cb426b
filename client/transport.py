"""The seam between the client and the wire: a few methods, implemented once for HTTP and once for gRPC.

A transport neither retries nor measures nor keeps deadlines: ``client.aio`` does, for both.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

import msgspec

from client.perplexity import Tokens
from client.results import Chunk, Health, ModelCard
from contract.generation import GenerateRequest


class Transport(Protocol):
    """All methods raise ``ClientError`` and nothing else of their own."""

    def generate(self, request: GenerateRequest, *, stream: bool) -> AsyncGenerator[Chunk, None]:
        """Send one request and yield its answer: many chunks, or a single one without ``stream``.

        Nothing is sent before the first ``anext``. Closing the generator, or cancelling the task that waits
        in it, cancels the request in the engine. An answer that does not reach its end is an error.
        """
        ...

    async def models(self) -> list[ModelCard]: ...

    async def health(self, model: str | None) -> Health:
        """Raises ``ConnectError`` if nobody answers; an unready server is an answer."""
        ...

    async def load(self, model: str) -> None:
        """Load or reload a model, and wait until it is ready."""
        ...

    async def unload(self, model: str) -> None: ...

    async def load_adapter(self, model: str | None, name: str, folder: str) -> None:
        """Serve the adapter in a folder of the server's machine beside a model, under a name of its own."""
        ...

    async def unload_adapter(self, name: str) -> None: ...

    async def tokenize(self, text: str, model: str | None) -> Tokens:
        """The text as the model reads it, control strings as their tokens."""
        ...

    async def score(self, ids: Sequence[int], model: str | None) -> list[float]:
        """The log-probability of every token but the first, given those before it."""
        ...

    async def aclose(self) -> None: ...


def sampling_fields(request: GenerateRequest) -> dict[str, Any]:
    """Sampling under the names that vLLM made common, leaving out what was not set.

    The length is always there: ``None`` asks for the rest of the context, whatever the dialect's default.
    """
    fields: dict[str, Any] = msgspec.to_builtins(request.sampling)
    sampled = fields.pop("do_sample", None)
    if sampled is False:
        fields["temperature"] = 0.0
    elif sampled and not fields.keys() & {"temperature", "top_k", "top_p"}:
        fields["temperature"] = 1.0
    if "include_stop" in fields:
        fields["include_stop_str_in_output"] = fields.pop("include_stop")
    fields.setdefault("max_tokens", None)
    if not request.skip_special_tokens:
        fields["skip_special_tokens"] = False
    if request.priority:
        fields["priority"] = request.priority
    return fields


def message_fields(request: GenerateRequest) -> list[dict[str, Any]]:
    """The chat as every dialect writes it."""
    fields: list[dict[str, Any]] = msgspec.to_builtins(request.messages or [])
    return fields
