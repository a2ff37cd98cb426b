"""The tables of faults are total, and every family shapes its errors."""

from __future__ import annotations

import json

import pytest

from contract.faults import Fault, FaultKind
from daemon.http_api.errors import FAULT_HEADER, STATUS, Family, body_of, family_of, response_of, status_of


def test_every_kind_has_a_status() -> None:
    assert set(STATUS) == set(FaultKind)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("kind", list(FaultKind))
def test_every_fault_has_an_answer(family: Family, kind: FaultKind) -> None:
    response = response_of(family, Fault(kind, "what happened", "what to do"))
    assert 400 <= response.status_code < 600
    assert response.media_type == "application/json"
    assert response.headers[FAULT_HEADER] == kind.value
    assert "what happened" in str(json.loads(bytes(response.body)))
    assert ("retry-after" in response.headers) == (response.status_code in (429, 503))


@pytest.mark.parametrize("family", list(Family))
def test_a_clients_mistake_is_never_5xx(family: Family) -> None:
    for kind in (FaultKind.INVALID_REQUEST, FaultKind.CONTEXT_OVERFLOW, FaultKind.TOO_LARGE):
        assert status_of(family, kind) < 500


def test_shapes() -> None:
    fault = Fault(FaultKind.INVALID_REQUEST, "seed: wrong", details={"param": "seed"})
    assert body_of(Family.OPENAI, fault) == {
        "error": {
            "message": "seed: wrong",
            "type": "invalid_request_error",
            "param": "seed",
            "code": "invalid_request",
        }
    }
    assert body_of(Family.MINDIE, fault) == {"error": "seed: wrong", "error_type": "Input Validation Error"}
    assert body_of(Family.TGI, fault) == {"error": "seed: wrong", "error_type": "validation"}
    assert body_of(Family.TRITON, fault) == {"error": "seed: wrong"}


def test_retry_after_is_the_faults() -> None:
    fault = Fault(FaultKind.OVERLOADED, "full", details={"retry_after_s": 7})
    assert response_of(Family.OPENAI, fault).headers["retry-after"] == "7"


def test_families_by_path() -> None:
    assert family_of("/v2") is family_of("/v2/models/m") is Family.TRITON
    assert family_of("/v1/models") is Family.OPENAI
    assert family_of("/generate") is Family.MINDIE
