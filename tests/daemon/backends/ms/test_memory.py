"""Which models fit, and what happens when they do not: real limits on real workers."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from contract.memory import Room
from daemon.backends.ms.memory import check_fit, plan_blocks
from tests.daemon.backends.ms.tiny_telechat2 import write_model

MIB = 1 << 20
ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("available", "wanted", "least", "expected"),
    [
        pytest.param(2000, 1000, 5, 40, id="a share of what the weights leave"),
        pytest.param(10**9, 64, 8, 64, id="no more than all sequences need"),
        pytest.param(2000, 700, 70, 70, id="one long sequence may take more"),
    ],
)
def test_blocks_by_memory(available: int, wanted: int, least: int, expected: int) -> None:
    room = Room(available, "this machine")
    blocks = plan_blocks(
        room=room, weight_bytes=1000, block_bytes=10, wanted_blocks=wanted, least_blocks=least
    )
    assert blocks == expected


@pytest.mark.parametrize("available", [1900, 900])
def test_too_little_for_one_sequence_is_refused_with_numbers(available: int) -> None:
    with pytest.raises(Fault, match="1,000 MiB and one sequence of full length needs 800 MiB") as caught:
        plan_blocks(
            room=Room(available * MIB, "the control group /a"),
            weight_bytes=1000 * MIB,
            block_bytes=10 * MIB,
            wanted_blocks=160,
            least_blocks=80,
        )
    assert caught.value.kind is FaultKind.OUT_OF_MEMORY
    assert f"{available:,} MiB are available, bound by the control group /a" in caught.value.message


def test_a_cache_as_set_must_leave_room_for_the_weights() -> None:
    check_fit(Room(30, "this machine"), 10, 20)
    with pytest.raises(Fault, match="the settings give 2 MiB of KV cache") as caught:
        check_fit(Room(2 * MIB, "ulimit -v"), MIB, 2 * MIB)
    assert caught.value.details["bound"] == "ulimit -v"


def script(text: str, folder: Path, *, setup: str = "true") -> Any:
    """What a Python script prints as JSON, run by a shell that may set limits first."""
    program = folder / "script.py"
    program.write_text(textwrap.dedent(text), "utf-8")
    command = f"{setup}; exec {sys.executable} {program} {folder}"
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_worker_under_ulimit_refuses_what_cannot_fit(tmp_path: Path) -> None:
    write_model(tmp_path / "1")
    fault = script(
        """
        import asyncio, json, sys
        sys.path.insert(0, "")
        from contract.faults import Fault
        from daemon.backends.base import ModelSpec
        from daemon.backends.worker import WorkerBackend
        spec = ModelSpec(name="tiny", version="1", directory=sys.argv[1] + "/1", backend="ms")
        try:
            asyncio.run(WorkerBackend().load(spec, lambda *_: None))
        except Fault as fault:
            print(json.dumps(fault.to_dict()))
        """,
        tmp_path,
        setup=f"ulimit -S -v {2 << 20}",
    )
    assert fault["kind"] == "out_of_memory"
    assert "bound by ulimit -v" in fault["message"]
    assert "raise that limit" in fault["hint"]


def test_memory_that_runs_out_in_a_step_fails_that_step_only(tmp_path: Path) -> None:
    pytest.importorskip("mindspore", reason="MindSpore is not installed")
    write_model(tmp_path / "1")
    answer = script(
        """
        import json, re, resource, sys
        sys.path.insert(0, "")
        from pathlib import Path
        from contract.faults import Fault
        from daemon.backends.ms.runner import ModelRunner, RunnerOptions
        from daemon.backends.ms.segments import Segment
        options = RunnerOptions(num_blocks=256, max_rows=4096, max_logit_rows=4096, threads=1)
        runner = ModelRunner.load(Path(sys.argv[1]) / "1", options=options, progress=lambda *_: None)
        base, scale = runner.rope_for(4000)
        step = [Segment([5] * 4000, 0, list(range(250)), 0, base, scale)]
        size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 10), resource.RLIM_INFINITY))
        try:
            runner.execute(step)
            kind = "none"
        except Fault as fault:
            kind = str(fault.kind)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(json.dumps([kind, len(runner.execute(step))]), flush=True)
        import os
        os._exit(0)
        """,
        tmp_path,
    )
    assert answer == ["out_of_memory", 4000]
