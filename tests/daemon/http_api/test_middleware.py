"""What every request passes: ids, keys, origins, limits, and answers to what nobody expected."""

from __future__ import annotations

import gzip
import hashlib
import json

import httpx2
import pytest

from tests.daemon.http_api.conftest import Serve
from tests.daemon.http_api.fake_service import FakeService

BODY = {"inputs": "a"}


def test_request_ids(http: httpx2.Client, service: FakeService) -> None:
    mine = http.post("/generate", json=BODY, headers={"X-Request-ID": "mine-1"})
    assert mine.headers["x-request-id"] == mine.headers["requestuuid"] == "mine-1"
    assert service.requests[0].request_id == "mine-1"
    for bad in ("has space", "x" * 200):
        answer = http.post("/generate", json=BODY, headers={"X-Request-ID": bad})
        assert len(answer.headers["x-request-id"]) == 32
    assert http.get("/nowhere").headers["x-request-id"]
    streamed = http.post("/generate", json={**BODY, "stream": True}, headers={"X-Request-ID": "mine-2"})
    assert streamed.headers["x-request-id"] == "mine-2"
    assert streamed.text.count("data:") > 1


def test_keys(serve: Serve) -> None:
    digests = tuple(hashlib.sha256(key).hexdigest() for key in (b"first", b"second"))
    url = serve(api_keys=digests)
    assert httpx2.get(f"{url}/health").status_code == 200
    assert httpx2.get(f"{url}/v2/health/ready").status_code == 200
    assert httpx2.get(f"{url}/v2/models/tiny/ready").status_code == 200
    assert httpx2.get(f"{url}/v2/models/tiny/versions/1/ready").status_code == 200
    absent = httpx2.get(f"{url}/v2/models/nobody/ready")
    assert absent.status_code == 400
    assert "tiny" not in absent.text, "who has no key learns no names"
    for path in ("/v2/models/tiny", "/v2/models/tiny/config", "/v2/models/ready", "/v2/models/a/b/ready"):
        assert httpx2.get(f"{url}{path}").status_code == 401, path
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic second"}, {"X-API-Key": ""}):
        answer = httpx2.get(f"{url}/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for headers in (
        {"Authorization": "Bearer first"},
        {"authorization": "bearer second"},
        {"X-API-Key": "second"},
    ):
        assert httpx2.get(f"{url}/v1/models", headers=headers).status_code == 200
    assert httpx2.get(f"{url}/v2").json()["error"]


def test_pages_of_other_origins_may_not_call(serve: Serve) -> None:
    url = serve()
    foreign = {"Origin": "https://elsewhere.example"}
    assert httpx2.post(f"{url}/generate", json=BODY, headers=foreign).status_code == 403
    assert httpx2.post(f"{url}/generate", json=BODY, headers={"Origin": url}).status_code == 200
    open_url = serve(allowed_origins=("https://elsewhere.example",))
    allowed = httpx2.post(f"{open_url}/generate", json=BODY, headers=foreign)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://elsewhere.example"


def test_large_bodies(serve: Serve) -> None:
    url = serve(max_body_bytes=1000)
    large = json.dumps({"inputs": "a" * 2000}).encode()
    assert httpx2.post(f"{url}/generate", content=large).status_code == 413
    chunks = httpx2.post(f"{url}/generate", content=(large[i : i + 500] for i in range(0, 2000, 500)))
    assert chunks.status_code == 413
    packed = httpx2.post(
        f"{url}/generate", content=gzip.compress(large), headers={"Content-Encoding": "gzip"}
    )
    assert packed.status_code == 413
    assert packed.json()["error_type"] == "Request Too Large"


def test_gzip_is_unpacked_on_every_route(http: httpx2.Client) -> None:
    packed = gzip.compress(json.dumps(BODY).encode())
    answer = http.post("/generate", content=packed, headers={"Content-Encoding": "gzip"})
    assert answer.json() == {"generated_text": "a"}


@pytest.mark.parametrize(
    "path", ["/generate", "/v1/chat/completions", "/v2/models/tiny/generate", "/v1/tokenizer"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"inputs": "\\ud83d"}',
        b"[" * 100000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
    ],
)
def test_broken_json(http: httpx2.Client, path: str, content: bytes) -> None:
    answer = http.post(path, content=content)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/json"
    assert "error" in answer.json()


def test_unknown_paths_and_methods(http: httpx2.Client) -> None:
    assert http.get("/v1/nowhere").json()["error"]["code"] == "not_found"
    assert http.get("/nowhere").json()["error_type"] == "NotFoundError"
    assert set(http.get("/v2/nowhere").json()) == {"error"}
    wrong = http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_defects_are_logged_and_not_shown(http: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    answer = http.post("/generate", json={"inputs": "!bug"}, headers={"X-Request-ID": "r7"})
    assert answer.status_code == 500
    assert "r7" in answer.json()["error"]
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text
