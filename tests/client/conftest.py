"""A running daemon with fake engines, and a client over each transport."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client
from tests.daemon.grpc_api.running import RunningDaemon, running_daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path / "repository", with_http=True) as started:
        yield started


@pytest.fixture(params=["http", "grpc"])
def url(daemon: RunningDaemon, request: pytest.FixtureRequest) -> str:
    """The daemon's address over each transport in turn."""
    return daemon.http_url if request.param == "http" else f"grpc://{daemon.grpc_address}"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened
