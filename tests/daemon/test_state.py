"""The state directory tells a running daemon from what a dead one left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contract.faults import Fault, FaultKind
from daemon.state import StateDirectory

HOLDER = """
import os, sys, time
from pathlib import Path
from daemon.state import StateDirectory
state = StateDirectory(Path(sys.argv[1]))
state.acquire()
state.write({"pid": os.getpid()})
print("held", flush=True)
time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_one_daemon_a_state_directory(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        state = StateDirectory(tmp_path)
        assert state.running()
        with pytest.raises(Fault, match=f"running already \\(pid {process.pid}") as caught:
            state.acquire()
        assert caught.value.kind is FaultKind.ALREADY_EXISTS
        state.signal(signal.SIGKILL)
        assert state.wait_stopped(5)
    finally:
        process.kill()
        process.wait()
    state.acquire()
    assert state.read() == {}
    state.release()
    assert not state.running()


def test_a_file_of_a_dead_daemon_is_no_daemon(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.write({"pid": os.getpid()})
    assert not state.running()
    with pytest.raises(Fault, match="no daemon is running"):
        state.require_running()


def test_damaged_information_is_no_information(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_text("{", "utf-8")
    assert StateDirectory(tmp_path).read() == {}


def test_unusable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(Fault, match="cannot be made"):
        StateDirectory(tmp_path / "file" / "state").create()
