"""The requests of docs/en/api.md, sent to a running daemon; their answers have the form that is shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.scenarios import terminal
from tests.scenarios.terminal import RunningDaemon

PAGE = (terminal.ROOT / "docs" / "en" / "api.md").read_text("utf-8")
PAIRS = re.findall(r"^```bash\n(.*?)^```\n(?:\n```json\n(.*?)^```\n)?", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
VOLATILE = {"id", "created", "cached_tokens"}


def at(daemon: RunningDaemon, text: str) -> str:
    """The same at the daemon's own addresses."""
    for port, name in ((1025, "http"), (1026, "management"), (1027, "metrics"), (8001, "grpc")):
        address = str(daemon.info[name]).partition("://")[2] or str(daemon.info[name])
        text = text.replace(f"127.0.0.1:{port}", address)
    return text


def settled(value: Any) -> Any:
    """Without what differs from run to run, and with the demo model alone."""
    if isinstance(value, dict):
        return {key: "..." if key in VOLATILE else settled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [settled(item) for item in value if not _is_echo(item)]
    return value


def _is_echo(item: Any) -> bool:
    return isinstance(item, dict) and "echo" in (item.get("id"), item.get("name"))


@pytest.mark.parametrize(("request_", "shown"), PAIRS, ids=range(len(PAIRS)))
def test_the_answer_is_as_shown(daemon: RunningDaemon, request_: str, shown: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", at(daemon, request_)],
        env=terminal.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if shown:
        assert settled(json.loads(done.stdout)) == settled(json.loads(shown))


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_program_runs(daemon: RunningDaemon, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", at(daemon, program)],
        env=terminal.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("12+30=42")
