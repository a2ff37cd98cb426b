"""Errors as data: what went wrong, for whom, and what to do about it.

Knows nothing of HTTP or gRPC: each transport maps kinds to its own codes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any


class FaultKind(enum.StrEnum):
    """The closed list of reasons a request or a command can fail."""

    INVALID_REQUEST = "invalid_request"
    """The request breaks a rule of its dialect: field, type, range."""
    UNSUPPORTED = "unsupported"
    """The request is understood, and this model or backend cannot do it."""
    TOO_LARGE = "too_large"
    """The body exceeds the size limit."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The prompt, or prompt and answer together, exceed the model's context."""
    UNAUTHENTICATED = "unauthenticated"
    """An API key is required and was missing or wrong."""
    FORBIDDEN = "forbidden"
    """The caller is known and may not do this."""
    NOT_FOUND = "not_found"
    """No such model, version, path or file."""
    ALREADY_EXISTS = "already_exists"
    """The thing to be created is there."""
    NOT_READY = "not_ready"
    """The model or the daemon exists and cannot answer yet, or no longer."""
    OVERLOADED = "overloaded"
    """The queue is full."""
    TIMEOUT = "timeout"
    """The time allowed has passed."""
    CANCELLED = "cancelled"
    """The caller went away or asked to stop."""
    OUT_OF_MEMORY = "out_of_memory"
    """The memory needed is not there."""
    INVALID_CONFIG = "invalid_config"
    """A settings file, flag or environment variable is wrong."""
    INVALID_MODEL = "invalid_model"
    """A model directory, recipe, checkpoint or tokenizer is wrong."""
    UNTRUSTED_CODE = "untrusted_code"
    """Code of a model directory is not on the list of known network files."""
    VERIFICATION_FAILED = "verification_failed"
    """Files differ from their manifest."""
    START_FAILED = "start_failed"
    """The daemon could not start."""
    MODEL_CRASHED = "model_crashed"
    """The worker process of the model died."""
    INTERNAL = "internal"
    """A defect of MindPort."""


EXIT_CODES: Mapping[FaultKind, int] = {
    FaultKind.INVALID_REQUEST: 2,
    FaultKind.UNSUPPORTED: 2,
    FaultKind.TOO_LARGE: 6,
    FaultKind.CONTEXT_OVERFLOW: 2,
    FaultKind.UNAUTHENTICATED: 6,
    FaultKind.FORBIDDEN: 6,
    FaultKind.NOT_FOUND: 4,
    FaultKind.ALREADY_EXISTS: 6,
    FaultKind.NOT_READY: 5,
    FaultKind.OVERLOADED: 6,
    FaultKind.TIMEOUT: 5,
    FaultKind.CANCELLED: 130,
    FaultKind.OUT_OF_MEMORY: 6,
    FaultKind.INVALID_CONFIG: 2,
    FaultKind.INVALID_MODEL: 2,
    FaultKind.UNTRUSTED_CODE: 6,
    FaultKind.VERIFICATION_FAILED: 7,
    FaultKind.START_FAILED: 3,
    FaultKind.MODEL_CRASHED: 1,
    FaultKind.INTERNAL: 1,
}
"""Exit code of a command that ends with a fault of each kind."""


class Fault(Exception):  # noqa: N818
    """One failure with everything its reader needs.

    Parameters
    ----------
    kind: why, from the closed list.
    message: one sentence naming the thing and the reason.
    hint: what to do about it, as a command or an edit where possible.
    details: further facts for programs, JSON-ready.
    """

    def __init__(
        self, kind: FaultKind, message: str, hint: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = dict(details or {})

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.kind]

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (Fault, (self.kind, self.message, self.hint, self.details))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``from_dict`` reads it back."""
        data: dict[str, Any] = {"kind": self.kind.value, "message": self.message}
        if self.hint:
            data["hint"] = self.hint
        if self.details:
            data["details"] = self.details
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fault:
        return cls(FaultKind(data["kind"]), data["message"], data.get("hint", ""), data.get("details") or {})


class Problem:
    """One finding of a validation: where, what is wrong, what to write instead."""

    __slots__ = ("message", "remedy", "where")

    def __init__(self, where: str, message: str, remedy: str = "") -> None:
        self.where = where
        self.message = message
        self.remedy = remedy

    def to_dict(self) -> dict[str, str]:
        return {"where": self.where, "message": self.message, "remedy": self.remedy}

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.message}" if self.where else self.message
        return f"{sentence} — {self.remedy}" if self.remedy else sentence


def fault_of_problems(kind: FaultKind, subject: str, problems: list[Problem], hint: str = "") -> Fault:
    """All problems of one input as one fault, a line each."""
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in {subject}"
    lines = "\n".join(f"  {problem}" for problem in problems)
    details = {"problems": [problem.to_dict() for problem in problems]}
    return Fault(kind, f"{count}\n{lines}", hint, details)


def problems_of(fault: Fault) -> list[Problem]:
    """The problems a fault was made of, or the fault itself as one."""
    listed = fault.details.get("problems")
    if isinstance(listed, list):
        return [Problem(**entry) for entry in listed]
    return [Problem("", fault.message, fault.hint)]
