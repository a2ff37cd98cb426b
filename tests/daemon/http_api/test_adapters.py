"""Loading and unloading adapters, as vLLM and MindIE take them."""

from __future__ import annotations

import httpx2
import pytest

from tests.daemon.http_api.fake_service import FakeService

LOAD = {"lora_name": "pirate", "lora_path": "/srv/pirate"}


def test_an_adapter_is_loaded_for_the_model_that_is_named(
    url: str, management_url: str, service: FakeService
) -> None:
    for base, body in ((url, LOAD), (management_url, {**LOAD, "master_model": "tiny"})):
        answer = httpx2.post(f"{base}/v1/load_lora_adapter", json=body)
        assert (answer.status_code, "pirate" in answer.text) == (200, True)
    assert service.controlled == [
        ("load_adapter", "None/pirate", "/srv/pirate"),
        ("load_adapter", "tiny/pirate", "/srv/pirate"),
    ]


def test_an_adapter_is_unloaded_once(url: str) -> None:
    answers = [httpx2.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": "pirate"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 404]
    assert "no adapter 'pirate'" in answers[1].json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"lora_path": "/x"}, "lora_name"),
        ({**LOAD, "lora_name": "a/b"}, "lora_name"),
        ({**LOAD, "lora_name": "a@1"}, "lora_name"),
        ({**LOAD, "lora_path": "pirate"}, "absolute path"),
        ({**LOAD, "lora_pat": "x"}, "lora_pat"),
    ],
)
def test_a_wrong_body_is_refused(url: str, service: FakeService, body: dict[str, str], word: str) -> None:
    answer = httpx2.post(f"{url}/v1/load_lora_adapter", json=body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]
    assert service.controlled == []
