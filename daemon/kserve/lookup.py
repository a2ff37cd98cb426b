"""Which version answers, with Triton's words when there is none."""

from __future__ import annotations

from contract.faults import Fault, FaultKind
from daemon.repository.status import ModelStatus, State
from daemon.service.facade import Service

_IN_TRANSITION = (State.LOADING, State.DRAINING, State.RESTARTING)


def find(service: Service, model: str, version: str = "") -> ModelStatus:
    """The ready version a request goes to. Raises ``Fault``: NOT_FOUND or NOT_READY."""
    try:
        return service.find(model, version)
    except Fault as fault:
        if fault.kind not in (FaultKind.NOT_FOUND, FaultKind.NOT_READY):
            raise
        raise _in_tritons_words(service, fault, model, version) from None


def find_any(service: Service, model: str, version: str = "") -> ModelStatus:
    """The version whatever its state, the highest when none is named. Raises ``Fault``: NOT_FOUND."""
    versions = [status for status in service.models() if status.name == model]
    if version:
        versions = [status for status in versions if status.version == version]
    if not versions:
        return find(service, model, version)
    return versions[-1]


def _in_tritons_words(service: Service, fault: Fault, model: str, version: str) -> Fault:
    versions = [status for status in service.models() if status.name == model]
    subject = f"Request for unknown model: '{model}'"
    if not versions:
        return Fault(FaultKind.NOT_FOUND, f"{subject} is not found", fault.hint, fault.details)
    if not version:
        states = ", ".join(f"version {status.version} is {_state(status)}" for status in versions)
        message = f"{subject} has no available versions: {states}"
        transient = any(status.state in _IN_TRANSITION for status in versions)
        kind = FaultKind.NOT_READY if transient else FaultKind.NOT_FOUND
        return Fault(kind, message, fault.hint, fault.details)
    named = [status for status in versions if status.version == version]
    if not named:
        return Fault(
            FaultKind.NOT_FOUND, f"{subject} version {version} is not found", fault.hint, fault.details
        )
    message = f"{subject} version {version} is not at ready state: it is {_state(named[0])}"
    return Fault(FaultKind.NOT_READY, message, fault.hint, fault.details)


def _state(status: ModelStatus) -> str:
    return f"{status.state} ({status.reason})" if status.reason else str(status.state)
