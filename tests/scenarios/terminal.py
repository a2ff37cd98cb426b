"""Runs the three programs as a person at a terminal would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 180


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment without MindPort's own variables and proxies."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MINDPORT_", "PROTOCOL_BUFFERS_")) and not key.lower().endswith("_proxy")
    }
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | dict(extra or {})


def command(program: str, *words: str) -> list[str]:
    return [str(Path(sys.executable).with_name(program)), *words]


def run(program: str, *words: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Answer:
    """``run("builder", "package", "--model", "telechat2_tiny")``."""
    done = subprocess.run(
        command(program, *words),
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(env),
        timeout=TIMEOUT_S,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class RunningDaemon:
    """A daemon that a scenario talks to, with the variables that lead ``client`` and ``daemon`` to it."""

    info: dict[str, Any]
    state_dir: Path

    @property
    def http(self) -> str:
        return str(self.info["http"])

    @property
    def grpc(self) -> str:
        return str(self.info["grpc"]).removeprefix("grpc://")

    def models(self) -> list[dict[str, Any]]:
        answer = run("daemon", "ps", "--json", "--state-dir", str(self.state_dir))
        models: list[dict[str, Any]] = answer.json["models"]
        return models


@contextmanager
def running_daemon(repository: Path, state_dir: Path, *flags: str) -> Iterator[RunningDaemon]:
    """``daemon start`` on free ports; ``daemon stop`` at the end."""
    ports = [word for name in ("http", "management", "metrics", "grpc") for word in (f"--{name}-port", "0")]
    place = ("--repository", str(repository), "--state-dir", str(state_dir))
    started = run("daemon", "start", "--json", *place, *ports, *flags)
    if started.code != 0:
        raise AssertionError(f"daemon start: exit {started.code}\n{started.out}{started.err}")
    try:
        yield RunningDaemon(started.json, state_dir)
    finally:
        stopped = run("daemon", "stop", "--state-dir", str(state_dir))
        if stopped.code not in (0, 4):
            raise AssertionError(f"daemon stop: exit {stopped.code}\n{stopped.out}{stopped.err}")
