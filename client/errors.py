"""Everything the client raises.

.. code-block:: text

    contract.Fault
    └── ClientError                  kind, message, hint, request_id, retry_after_s
        ├── ConnectError             no server answers at the address; nothing was sent
        ├── ConnectionLostError      the connection broke while an answer was under way
        ├── DeadlineError            the time allowed has passed; the request was cancelled
        ├── ProtocolError            the server's answer is not what its API promises
        └── RequestError             the server answered with a fault
            ├── InvalidRequestError      a field is wrong, unsupported or too large
            │   └── ContextOverflowError     prompt, or prompt and answer, exceed the model's context
            ├── UnauthenticatedError     the API key is missing or wrong
            ├── ForbiddenError           the key may not do this
            ├── ModelNotFoundError       no such model, version or path
            ├── NotReadyError            the model or the server cannot answer yet, or no longer
            ├── OverloadedError          the queue is full
            ├── CancelledByServerError   someone else ended the request
            └── ServerError              a failure on the server's side

Knows nothing of HTTP or gRPC: each transport maps its codes to fault kinds and calls ``request_error``.
"""

from __future__ import annotations

from collections.abc import Mapping

from contract.faults import Fault, FaultKind


class ClientError(Fault):
    """Root of all errors of the client."""

    def __init__(
        self,
        kind: FaultKind,
        message: str,
        hint: str = "",
        *,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(kind, message, hint)
        self.request_id = request_id
        """Find the request in the daemon's log by it; empty when no request was sent."""
        self.retry_after_s = retry_after_s
        """Set when the server took nothing on and asks to come back later."""

    def __reduce__(self) -> tuple[object, ...]:
        state = {"request_id": self.request_id, "retry_after_s": self.retry_after_s}
        return (_rebuild, (type(self), self.kind, self.message, self.hint, state))


def _rebuild(
    cls: type[ClientError], kind: FaultKind, message: str, hint: str, state: dict[str, object]
) -> ClientError:
    error = cls.__new__(cls)
    Fault.__init__(error, kind, message, hint)
    error.__dict__.update(state)
    return error


class ConnectError(ClientError):
    """No server answers at the address; nothing was sent."""

    def __init__(self, message: str, hint: str = "start it with: daemon start") -> None:
        super().__init__(FaultKind.NOT_READY, message, hint)


class ConnectionLostError(ClientError):
    """The connection broke while an answer was under way."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        hint = "see what happened with: daemon logs"
        super().__init__(FaultKind.MODEL_CRASHED, message, hint, request_id=request_id)


class DeadlineError(ClientError):
    """The time allowed has passed; the request was cancelled."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        hint = "allow more time, or ask for fewer tokens"
        super().__init__(FaultKind.TIMEOUT, message, hint, request_id=request_id)


class ProtocolError(ClientError):
    """The server's answer is not what its API promises."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        hint = "check that the address is a MindPort daemon's inference port"
        super().__init__(FaultKind.INTERNAL, message, hint, request_id=request_id)


class RequestError(ClientError):
    """The server answered with a fault."""


class InvalidRequestError(RequestError):
    """A field is wrong, unsupported or too large."""


class ContextOverflowError(InvalidRequestError):
    """Prompt, or prompt and answer together, exceed the model's context."""


class UnauthenticatedError(RequestError):
    """The API key is missing or wrong."""


class ForbiddenError(RequestError):
    """The key may not do this."""


class ModelNotFoundError(RequestError):
    """No such model, version or path."""


class NotReadyError(RequestError):
    """The model or the server cannot answer yet, or no longer."""


class OverloadedError(RequestError):
    """The queue is full."""


class CancelledByServerError(RequestError):
    """Someone else ended the request."""


class ServerError(RequestError):
    """A failure on the server's side."""


ERROR_TYPES: Mapping[FaultKind, type[RequestError]] = {
    FaultKind.INVALID_REQUEST: InvalidRequestError,
    FaultKind.UNSUPPORTED: InvalidRequestError,
    FaultKind.TOO_LARGE: InvalidRequestError,
    FaultKind.CONTEXT_OVERFLOW: ContextOverflowError,
    FaultKind.UNAUTHENTICATED: UnauthenticatedError,
    FaultKind.FORBIDDEN: ForbiddenError,
    FaultKind.NOT_FOUND: ModelNotFoundError,
    FaultKind.ALREADY_EXISTS: InvalidRequestError,
    FaultKind.NOT_READY: NotReadyError,
    FaultKind.OVERLOADED: OverloadedError,
    FaultKind.TIMEOUT: ServerError,
    FaultKind.CANCELLED: CancelledByServerError,
    FaultKind.OUT_OF_MEMORY: ServerError,
    FaultKind.INVALID_CONFIG: ServerError,
    FaultKind.INVALID_MODEL: ServerError,
    FaultKind.UNTRUSTED_CODE: ServerError,
    FaultKind.VERIFICATION_FAILED: ServerError,
    FaultKind.START_FAILED: ServerError,
    FaultKind.MODEL_CRASHED: ServerError,
    FaultKind.INTERNAL: ServerError,
}
"""The exception for each kind of fault a server can report; total."""

_HINTS: Mapping[FaultKind, str] = {
    FaultKind.NOT_FOUND: "list the models with: client models",
    FaultKind.NOT_READY: "wait for it with: client health --wait 60",
    FaultKind.OVERLOADED: "try again later",
}


_KEY_HINT = "give the key with --api-key, api_key=... or MINDPORT_API_KEY"
"""Instead of the server's, which speaks of headers."""


def request_error(
    kind: FaultKind,
    message: str,
    hint: str = "",
    *,
    request_id: str = "",
    retry_after_s: float | None = None,
) -> RequestError:
    """The exception for a fault that a server reported, with a hint even if the server gave none."""
    hint = _KEY_HINT if kind is FaultKind.UNAUTHENTICATED else hint or _HINTS.get(kind, "")
    return ERROR_TYPES[kind](kind, message, hint, request_id=request_id, retry_after_s=retry_after_s)
