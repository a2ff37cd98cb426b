"""Limits of every kind, on made-up machines and on this one."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from contract.memory import Overhead, available_memory, resident_bytes, total_memory

MACHINE = {"proc/meminfo": "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n"}
ALL = 1000 * 1024


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {**MACHINE, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def v2(group: str, limit: str, used: int, inactive: int = 0, high: str = "max") -> dict[str, str]:
    folder = f"sys/fs/cgroup{group.rstrip('/')}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 7\ninactive_file {inactive}\n",
    }


def v1(group: str, limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory{group.rstrip('/')}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}\n",
    }


@pytest.mark.parametrize(
    ("files", "expected", "bound"),
    [
        pytest.param({}, ALL, "this machine", id="no limits"),
        pytest.param(v2("/", "max", 5), ALL, "this machine", id="unlimited group"),
        pytest.param(v2("/", "500000", 300_000, 100_000), 300_000, "the control group /", id="container"),
        pytest.param(v2("/", "max", 300_000, high="400000"), 100_000, "the control group /", id="high"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", **v2("/a/b", "900000", 1), **v2("/a", "800000", 600_000)},
            200_000,
            "the control group /a",
            id="a group around ours",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", **v2("/a/b", "300000", 0), **v2("/a", "800000", 0)},
            300_000,
            "the control group /a/b",
            id="our own group",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/docker/feed\n", **v2("/", "300000", 0)},
            300_000,
            "the control group /",
            id="the host's path inside a container",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/../outside\n", **v2("/", "300000", 0)},
            300_000,
            "the control group /",
            id="a path outside the namespace",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/m/n\n0::/\n",
                **v1("/m/n", 1 << 62, 0),
                **v1("/m", 400_000, 350_000, 50_000),
            },
            100_000,
            "the control group /m",
            id="first generation",
        ),
        pytest.param(v1("/", 400_000, 600_000), 0, "the control group /", id="more used than allowed"),
    ],
)
def test_the_least_counts(tmp_path: Path, files: dict[str, str], expected: int, bound: str) -> None:
    room = available_memory(machine(tmp_path, files))
    assert (room.bytes, room.bound) == (expected, bound)


def test_what_is_spoken_for_is_taken_off(tmp_path: Path) -> None:
    root = machine(tmp_path, v2("/", "900000", 0))
    assert available_memory(root, Overhead(own=100_000, others=200_000)).bytes == 600_000
    assert available_memory(root, Overhead(own_virtual=1 << 60)).bytes == 900_000
    assert available_memory(root, Overhead(others=1 << 60)).bytes == 0


def test_a_machine_that_tells_nothing_has_nothing(tmp_path: Path) -> None:
    assert available_memory(tmp_path).bytes == 0


def test_this_machine() -> None:
    assert 1 << 20 < available_memory().bytes <= total_memory()
    assert 1 << 20 < resident_bytes() < total_memory()
    assert resident_bytes(2**22 - 1) == 0


@pytest.mark.parametrize(("flag", "name"), [("-v", "RLIMIT_AS"), ("-d", "RLIMIT_DATA"), ("-m", "RLIMIT_RSS")])
def test_ulimit(flag: str, name: str) -> None:
    limit = 2 << 30
    hard = resource.getrlimit(getattr(resource, name))[1]
    if hard != resource.RLIM_INFINITY and hard < limit:
        pytest.skip(f"ulimit {flag} cannot be raised to {limit >> 10} KiB here")
    others = "overhead=Overhead(others=1 << 60)"  # limits of a process are its own
    code = (
        "from contract.memory import Overhead, available_memory; import pathlib; "
        f"room = available_memory(pathlib.Path('/nothing'), {others}); print(room.bytes, room.bound)"
    )
    script = f'ulimit -S {flag} {limit >> 10}; exec {sys.executable} -c "{code}"'
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    left, bound = out.split(" ", 1)
    assert bound.strip() == f"ulimit {flag}"
    assert int(left) == limit, "nothing is used where no file tells"
