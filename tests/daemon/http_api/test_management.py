"""Health, facts, metrics, and the daemon's own endpoints."""

from __future__ import annotations

import httpx2

from daemon.http_api.app import build_inference_app, build_management_app, build_merged_app, build_metrics_app
from daemon.http_api.options import HttpOptions
from tests.daemon.http_api.conftest import Control, Pool
from tests.daemon.http_api.fake_service import FakeService


async def render() -> tuple[bytes, str]:
    return b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"


def test_status(management_url: str) -> None:
    status = httpx2.get(f"{management_url}/status").json()
    assert (status["version"], status["live"], status["ready"]) == ("9.9", True, True)
    assert {model["name"]: model["state"] for model in status["models"]} == {
        "other": "listed",
        "tiny": "ready",
        "torn": "broken",
    }
    assert {model["name"]: model["stats"] for model in status["models"]} == {
        "other": None,
        "tiny": {"running": 2},
        "torn": None,
    }


def test_stop(management_url: str, control: Control) -> None:
    assert httpx2.post(f"{management_url}/stop").status_code == 202
    assert httpx2.post(f"{management_url}/stop?drain=false").json() == {"stopping": True, "drain": False}
    assert control.stops == [True, False]
    # A link on a web page must not stop the daemon.
    assert httpx2.get(f"{management_url}/stop").status_code == 405
    foreign = httpx2.post(f"{management_url}/stop", headers={"Origin": "https://elsewhere.example"})
    assert foreign.status_code == 403


def test_health(url: str, management_url: str, service: FakeService) -> None:
    ready = ("/health", "/health/ready", "/v2/health/ready")
    live = ("/health/live", "/ping", "/v2/health/live")
    for base in (url, management_url):
        assert {httpx2.get(base + path).status_code for path in ready + live} == {200}
    service.is_ready = False
    assert {httpx2.get(url + path).status_code for path in ready} == {503}
    assert {httpx2.get(url + path).status_code for path in live} == {200}
    assert "torn version 1 is broken" in httpx2.get(f"{url}/health").json()["error"]


def test_an_unknown_path_says_where_to_look(url: str, management_url: str) -> None:
    assert "GET /v1/models" in httpx2.get(f"{url}/v9").json()["error"]
    elsewhere = httpx2.post(f"{management_url}/v1/completions", json={})
    assert "inference is on http_port" in elsewhere.json()["error"]["message"]


def test_the_address_in_a_browser(url: str) -> None:
    answer = httpx2.get(f"{url}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert "is running" in answer.text
    assert "metrics_port" in httpx2.get(f"{url}/metrics").json()["error"]


def test_both_ports_list_the_same_models(url: str, management_url: str) -> None:
    listed = httpx2.get(f"{url}/v1/models").json()
    assert listed["data"]
    assert httpx2.get(f"{management_url}/v1/models").json() == listed


def test_metrics_may_share_a_port(service: FakeService, pool: Pool, control: Control) -> None:
    assert httpx2.get(f"{pool.serve(build_metrics_app(render))}/metrics").text == "up 1\n"
    options = HttpOptions()
    apps = [
        build_inference_app(service, options),
        build_management_app(service, options, control),
        build_metrics_app(render),
    ]
    merged = pool.serve(build_merged_app(apps, options))
    for path in ("/metrics", "/status", "/v1/models", "/v2", "/health"):
        assert httpx2.get(merged + path).status_code == 200


def test_tokenize_and_version(http: httpx2.Client) -> None:
    assert http.post("/tokenize", json={"prompt": "a b"}).json()["count"] == 2
    assert http.post("/v1/tokenizer", json={"inputs": "a b"}).json()["token_number"] == 2
    assert http.post("/tokenize", json={}).status_code == 400
    assert http.post("/v1/tokenizer", json={}).json()["error"] == "inputs: this field is required"
    assert http.get("/version").json() == {"version": "0"}
