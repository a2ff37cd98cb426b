"""A running daemon for each test, and tritonclient for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from tests.daemon.grpc_api.running import RunningDaemon, running_daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path) as started:
        yield started


@pytest.fixture
def triton(daemon: RunningDaemon) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(daemon.grpc_address) as client:
        yield client
