"""Asks a service and gathers what it answers."""

from __future__ import annotations

import pytest

from contract.faults import Fault
from contract.generation import Cancelled, Delta, Event, Failed, Finished, GenerateRequest, Started
from daemon.service.daemon_service import DaemonService

TERMINAL = (Finished, Failed, Cancelled)


async def collect(service: DaemonService, request: GenerateRequest) -> list[Event]:
    events = [event async for event in service.generate(request)]
    assert isinstance(events[0], Started)
    assert [isinstance(event, TERMINAL) for event in events].count(True) == 1
    assert isinstance(events[-1], TERMINAL)
    return events


async def answer(service: DaemonService, request: GenerateRequest) -> tuple[str, Delta]:
    deltas = [event for event in await collect(service, request) if isinstance(event, Delta)]
    return "".join(delta.text for delta in deltas), deltas[-1]


async def fault_of(service: DaemonService, request: GenerateRequest) -> Fault:
    with pytest.raises(Fault) as caught:
        await collect(service, request)
    return caught.value
