"""Which version a request means, and the faults when none can answer.

The sentences keep the words that Triton's clients look for ("unknown model", "is not found",
"has no available versions", "is not at ready state").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contract.faults import Fault, FaultKind
from daemon.repository.status import ModelStatus, State


def split(model: str, version: str = "") -> tuple[str, str]:
    """``NAME@VERSION`` as name and version; an explicit version wins."""
    name, _, suffix = model.partition("@")
    return name, version or suffix


def default_model(configured: str | None, ready: Sequence[str], models: Sequence[ModelStatus]) -> str:
    """The model of a request that names none. Raises ``Fault``."""
    if configured:
        return configured
    if len(ready) == 1:
        return ready[0]
    names = _listing({status.name for status in models})
    if not models:
        hint = "build a model with: builder package"
        raise Fault(FaultKind.NOT_FOUND, "the repository holds no models", hint)
    if not ready:
        raise not_ready(models, "")
    hint = f"name one of: {names}; or set default_model"
    raise Fault(
        FaultKind.INVALID_REQUEST,
        f"the request names no model, and {len(ready)} models are ready",
        hint,
        {"models": sorted(ready)},
    )


def unknown_model(name: str, names: Iterable[str]) -> Fault:
    listing = _listing(names)
    hint = (
        f"the models are: {listing}"
        if listing
        else "the repository is empty; build a model with: builder package"
    )
    message = f"Request for unknown model: '{name}' is not found"
    return Fault(FaultKind.NOT_FOUND, message, hint, {"models": sorted(names)})


def unknown_adapter(name: str, known: Sequence[str]) -> Fault:
    hint = f"the adapters are: {_listing(known)}" if known else "no adapter is loaded"
    return Fault(FaultKind.NOT_FOUND, f"there is no adapter {name!r}", hint, {"adapters": list(known)})


def unknown_version(name: str, version: str, versions: Iterable[str]) -> Fault:
    known = sorted(versions, key=lambda text: int(text or "0"))
    message = f"Request for unknown model: '{name}' version {version} is not found"
    return Fault(FaultKind.NOT_FOUND, message, f"its versions are: {', '.join(known)}", {"versions": known})


def not_ready(statuses: Sequence[ModelStatus], version: str) -> Fault:
    """None of these versions can answer; the fault tells the state of the most promising one."""
    status = max(statuses, key=lambda one: _PROMISE.index(one.state))
    about = f"version {status.version} is {describe(status)}"
    if version:
        message = f"'{status.name}' version {version} is not at ready state: it is {describe(status)}"
    else:
        message = f"'{status.name}' has no available versions: {about}"
    details = {
        "model": status.name,
        "version": status.version,
        "state": status.state.value,
        "progress": round(status.progress, 4),
        "reason": status.reason,
    }
    if status.state in {State.LOADING, State.RESTARTING}:
        details["retry_after_s"] = 5
    return Fault(FaultKind.NOT_READY, message, _REMEDY[status.state].format(name=status.name), details)


def describe(status: ModelStatus) -> str:
    """A state in words, with its progress or reason."""
    if status.state is State.LOADING:
        text = f" ({status.progress_text})" if status.progress_text else ""
        return f"loading, {status.progress:.0%}{text}"
    return f"{status.state.value}: {status.reason}" if status.reason else status.state.value


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


_PROMISE = (
    State.LISTED,
    State.UNLOADED,
    State.BROKEN,
    State.DRAINING,
    State.RESTARTING,
    State.LOADING,
    State.READY,
)
_REMEDY = {
    State.LISTED: "load it with: daemon load {name}",
    State.UNLOADED: "load it with: daemon load {name}",
    State.BROKEN: "mend what the reason says, then: daemon load {name}",
    State.DRAINING: "it is being unloaded; load it again with: daemon load {name}",
    State.RESTARTING: "try again in a few seconds",
    State.LOADING: "try again when it is ready; see: daemon status",
    State.READY: "",
}
