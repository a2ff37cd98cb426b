"""The demo model's answers are right, asked through the daemon as its README says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.scenarios.conftest import MODEL
from tests.scenarios.terminal import ROOT, RunningDaemon, environment

EXAMPLE = ROOT / "examples" / "telechat2_tiny"
EVERY = 4
"""One held-out question in so many is asked; the README's figures are of all."""
LEAST = 0.95


def test_held_out_questions(daemon: RunningDaemon, tmp_path: Path) -> None:
    lines = (EXAMPLE / "heldout.jsonl").read_text("utf-8").splitlines(keepends=True)
    sample = tmp_path / "sample.jsonl"
    sample.write_text("".join(lines[::EVERY]), "utf-8")
    words = ["--url", daemon.http, "--model", MODEL, "--questions", str(sample), "--json"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "evaluate.py"), *words],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["overall"]["all"]["accuracy"] >= LEAST, done.stdout
