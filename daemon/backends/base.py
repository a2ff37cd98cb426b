"""The two contracts a backend can fulfil. Knows nothing of text, templates, HTTP or gRPC.

A backend object lives inside the worker process of one model version; ``worker.WorkerBackend`` has the
same methods on the daemon's side of the pipe, so the service cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from contract.faults import Fault

Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and what is being done."""

Cancel = Callable[[], None]
"""Takes effect within one engine step; does nothing when all is over."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend is told to load."""

    name: str
    version: str
    directory: str
    """The version's folder."""
    backend: str
    options: dict[str, Any] = {}
    """Backend options: daemon settings for this backend over the model's ``serving`` block."""
    threads: int = 1
    promised_bytes: int = 0
    """Memory that models loaded before may still take."""
    adapters: dict[str, str] = {}
    """LoRA adapters to serve besides: name -> folder in PEFT's form."""

    @property
    def path(self) -> Path:
        return Path(self.directory)


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter beside a loaded model."""

    name: str
    directory: str
    memory_bytes: int = 0


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded token model can do."""

    vocab_size: int
    context_len: int
    """Prompt and answer together, in tokens."""
    max_sequences: int
    """Sequences computed in one step at most."""
    kv_tokens: int
    """Tokens the KV cache holds."""
    memory_bytes: int
    dtype: str
    unclaimed_bytes: int = 0
    """The part of ``memory_bytes`` that is taken from the system only when it is used."""
    adapters: list[AdapterInfo] = []
    details: dict[str, Any] = {}


class TokenSampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling with every default resolved; see ``contract.generation.Sampling`` for the meanings."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    """End tokens included, unless the request ignores them."""
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    prompt_ids: list[int]
    sampling: TokenSampling
    priority: int = 0
    """Smaller is more urgent."""
    caller: str = ""
    """On whose behalf: callers share the engine evenly."""
    adapter: str | None = None
    """The name of a loaded adapter; ``None``: the model as it is."""


class TokenChoice(msgspec.Struct, frozen=True, array_like=True):
    """A token's log-probability and its likeliest rivals as (id, log-probability) pairs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one request from one or more engine steps."""

    token_ids: list[int]
    choices: list[TokenChoice] | None = None
    """As many as ``token_ids`` when log-probabilities were asked for."""
    prompt_choices: list[TokenChoice] | None = None
    """For prompt tokens 1.. (the first has none); complete in the first event that carries tokens."""
    finish: Literal["stop", "length"] | None = None
    """Set in the last event. ``stop``: the last of ``token_ids`` is an end or stop token."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; in the first event."""
    queue_s: float = 0.0
    """Time from submission to the first scheduled step; in the first event."""


class BackendStats(msgspec.Struct, frozen=True, kw_only=True):
    running: int = 0
    waiting: int = 0
    kv_used_fraction: float = 0.0
    tokens_generated: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    """Computed so far: a worker with requests whose numbers all stand still is taken for stuck."""
    guessed_tokens: int = 0
    """Tokens that speculation proposed."""
    right_guesses: int = 0
    """Those of them that were chosen."""
    memory_bytes: int = 0


class TokenBackend(Protocol):
    """Token ids in, token ids out."""

    async def load(self, spec: ModelSpec, progress: Progress) -> ModelInfo:
        """Make the model ready. Raises ``Fault``."""
        ...

    def generate(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        """Tokens as they are chosen; the last event has ``finish``.

        Raises ``Fault`` from the iterator. Closing the iterator early cancels within one engine step.
        """
        ...

    async def stats(self) -> BackendStats: ...

    async def unload(self) -> None:
        """Stop running requests with a fault and give everything back."""
        ...


class TokenSink(Protocol):
    """Takes what one request gets, as it comes, in the event loop. Must not raise."""

    def put(self, event: TokenEvent) -> None:
        """Tokens. Nothing follows an event with ``finish``."""
        ...

    def fail(self, fault: Fault) -> None:
        """Nothing follows. Without meaning after the finish."""
        ...


@runtime_checkable
class TokenPusher(Protocol):
    """What a token backend can do besides: hand events on without a task for each request."""

    def start(self, request: TokenRequest, sink: TokenSink) -> Cancel:
        """As ``generate``, into a sink, which gets nothing before this returns nor after the cancellation.

        Raises ``Fault`` when the request cannot begin.
        """
        ...


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor in KServe terms; ``data`` is raw little-endian, BYTES elements length-prefixed."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    inputs: list[Tensor]
    outputs: list[str] = []
    parameters: dict[str, Any] = {}
    priority: int = 0


@runtime_checkable
class AdapterHost(Protocol):
    """What a token backend can do besides, when it serves adapters."""

    async def load_adapter(self, name: str, directory: str) -> AdapterInfo:
        """Serve a LoRA adapter in PEFT's form under this name. Raises ``Fault``."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Running requests keep it to their end. Raises ``Fault`` when there is none of this name."""
        ...


class TensorBackend(Protocol):
    """Tensors in, zero or more responses of tensors out (Triton's decoupled models included)."""

    async def load(self, spec: ModelSpec, progress: Progress) -> dict[str, Any]:
        """Make the model ready; returns Triton's model configuration as JSON-ready data."""
        ...

    def infer(self, request: InferRequest) -> AsyncIterator[list[Tensor]]: ...

    async def stats(self) -> BackendStats: ...

    async def unload(self) -> None: ...
