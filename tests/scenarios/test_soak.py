"""Random requests in little room, for seconds; ``python -m tests.soak --minutes 30`` goes on for longer."""

from __future__ import annotations

from pathlib import Path

from tests.scenarios.terminal import running_daemon
from tests.soak.__main__ import MODEL, SMALL, soak

SECONDS = 10.0


def test_every_request_ends_once_and_memory_stays_flat(packaged: Path, tmp_path: Path) -> None:
    with running_daemon(packaged, tmp_path / "state", "--model", MODEL, *SMALL) as daemon:
        assert soak(daemon, SECONDS, streams=12, pause_s=0.05, seed=2) == []
