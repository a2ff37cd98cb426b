"""Every dialect says how urgent a request is in its own way, and every request has a caller."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx2
import pytest

from tests.daemon.http_api.conftest import Serve
from tests.daemon.http_api.fake_service import FakeService

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "a"},
    "/v1/chat/completions": CHAT,
    "/generate": {"inputs": "a", "parameters": {}},
    "/v2/models/tiny/generate": {"text_input": "a"},
}


@pytest.mark.parametrize(
    ("path", "body", "urgency"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "a", "priority": -7}, -7),
        ("/v1/chat/completions", {**CHAT, "priority": 3}, 3),
        ("/generate", {"prompt": "a", "priority": 2}, 2),
        ("/generate", {"inputs": "a", "parameters": {"priority": 1}}, -4),
        ("/generate", {"inputs": "a", "parameters": {"priority": 5}}, 0),
        ("/v2/models/tiny/generate", {"text_input": "a", "parameters": {"priority": 2}}, -3),
        ("/v2/models/tiny/generate", {"text_input": "a", "parameters": {"priority": 0}}, 0),
        ("/v2/models/tiny/generate", {"text_input": "a", "parameters": {"priority": 6}}, 1),
        ("/v2/models/tiny/generate", {"text_input": "a", "sampling_parameters": {"priority": 2}}, 2),
    ],
)
def test_urgency(
    http: httpx2.Client, service: FakeService, path: str, body: dict[str, Any], urgency: int
) -> None:
    assert http.post(path, json=body).status_code == 200
    assert service.requests[0].priority == urgency


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "a", "priority": "soon"}),
        ("/generate", {"inputs": "a", "parameters": {"priority": 0}}),
        ("/generate", {"inputs": "a", "parameters": {"priority": 6}}),
        ("/v2/models/tiny/generate", {"text_input": "a", "parameters": {"priority": -1}}),
    ],
)
def test_priorities_that_mean_nothing_are_refused(http: httpx2.Client, path: str, body: Any) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code in (400, 422)
    assert "priority" in answer.text


@pytest.mark.parametrize("path", PATHS)
def test_the_caller_is_the_key_where_keys_are_checked(serve: Serve, service: FakeService, path: str) -> None:
    known = hashlib.sha256(b"first").hexdigest()
    url = serve(api_keys=(known,))
    answer = httpx2.post(url + path, json=PATHS[path], headers={"Authorization": "Bearer first"})
    assert answer.status_code == 200
    assert service.requests[0].caller == known


@pytest.mark.parametrize("path", PATHS)
def test_the_caller_is_the_address_where_they_are_not(
    http: httpx2.Client, service: FakeService, path: str
) -> None:
    assert http.post(path, json=PATHS[path], headers={"X-API-Key": "made up"}).status_code == 200
    assert service.requests[0].caller == "127.0.0.1"
