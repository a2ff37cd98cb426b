"""Every kind of fault has a status, and the trailer holds the fault."""

from __future__ import annotations

import json

from client.grpc_errors import FAULT_TRAILER as CLIENTS_TRAILER
from contract.faults import Fault, FaultKind
from daemon.grpc_api.errors import CODES, FAULT_TRAILER, trailer_of


def test_table_is_total() -> None:
    assert set(CODES) == set(FaultKind)


def test_client_reads_the_trailer_the_daemon_writes() -> None:
    assert CLIENTS_TRAILER == FAULT_TRAILER


def test_trailer_stays_small() -> None:
    fault = Fault(
        FaultKind.OVERLOADED, "很" * 100_000, "h" * 100_000, {"retry_after_s": 2, "all": ["x"] * 9999}
    )
    ((name, value),) = trailer_of(fault)
    data = json.loads(value)
    assert name.endswith("-bin")
    assert len(value) < 4096
    assert data["kind"] == "overloaded"
    assert data["details"] == {"retry_after_s": 2}
