"""Ctrl-C while a program still imports: exit code 130 and silence, at whichever import it comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenarios.terminal import ROOT, environment

PROGRAMS = ("builder", "daemon", "client")

INTERRUPTS_ITSELF = """
import os, signal, sys

class Interrupter:
    left = int(os.environ["INTERRUPTED_IMPORT"])
    began = False

    def find_spec(self, name, path=None, target=None):
        self.began |= name.endswith(".cli")
        self.left -= self.began
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
"""
"""As ``sitecustomize``: a signal at the n-th import of the program, which begins with its command line."""


@pytest.mark.parametrize("count", [1, 2, 10, 40])
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interrupt_during_imports_ends_quietly(program: str, count: int, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS_ITSELF, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        env=environment({"PYTHONPATH": f"{tmp_path}:{ROOT}", "INTERRUPTED_IMPORT": str(count)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert (done.stdout, done.stderr.strip()) == ("", "")
