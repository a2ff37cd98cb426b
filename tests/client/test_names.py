"""The public names, and what importing them costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import client

HEAVY = {"numpy", "grpc", "tritonclient", "rich", "httpx2", "asyncio", "pydantic", "starlette"}


def loaded_by(code: str) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_all_names_exist_and_are_sorted() -> None:
    assert client.__all__ == sorted(client.__all__)
    assert dir(client) == client.__all__
    for name in client.__all__:
        assert getattr(client, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        client.nonsense  # noqa: B018


def test_help_loads_nothing_heavy() -> None:
    code = "from client.cli import run\nfor name in 'generate', 'chat', 'models': run([name, '--help'])"
    assert not HEAVY & loaded_by(code)


def test_client_over_http_loads_no_grpc() -> None:
    loaded = loaded_by("from client import Client\nClient('http://127.0.0.1:9').close()")
    assert "httpx2" in loaded
    assert not {"numpy", "grpc", "tritonclient", "rich"} & loaded
