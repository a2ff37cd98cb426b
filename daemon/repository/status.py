"""What the registry tells about each version of each model."""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class State(enum.StrEnum):
    LISTED = "listed"
    """On disk, not asked for."""
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """Finishing its requests before it unloads."""
    UNLOADED = "unloaded"
    BROKEN = "broken"
    """Could not be read or loaded; ``reason`` says why."""
    RESTARTING = "restarting"
    """Its worker died; a new one is loading."""


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    state: State
    backend: str
    reason: str = ""
    progress: float = 0.0
    """Of loading, 0 to 1."""
    progress_text: str = ""
    directory: str = ""
    pid: int | None = None
    """Of the worker process."""
    ready_since: float | None = None
    """Seconds since the epoch."""
    restarts: int = 0
    context_len: int = 0
    max_input_tokens: int = 0
    has_chat_template: bool = False
    memory_bytes: int = 0
    adapters: list[str] = []
    """Served besides the model, each under a name of its own."""
    details: dict[str, Any] = {}
