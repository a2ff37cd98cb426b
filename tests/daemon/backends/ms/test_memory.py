from __future__ import annotations

from pathlib import Path

import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.ms.memory import available_bytes, plan_blocks


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_machine_without_limits(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n",
        "sys/fs/cgroup/memory.max": "max\n",
    }
    assert available_bytes(write(tmp_path, files)) == 1000 * 1024


def test_control_group_limits_less_what_is_used_and_cannot_be_reclaimed(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 1000 kB\n",
        "sys/fs/cgroup/memory.max": "500000\n",
        "sys/fs/cgroup/memory.current": "300000\n",
        "sys/fs/cgroup/memory.stat": "anon 7\ninactive_file 100000\n",
    }
    assert available_bytes(write(tmp_path, files)) == 300_000


def test_older_control_group(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 1000 kB\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "400000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "600000\n",
    }
    assert available_bytes(write(tmp_path, files)) == 0


def test_this_machine_has_memory() -> None:
    assert available_bytes() > 1 << 20


@pytest.mark.parametrize(
    ("available", "wanted", "least", "expected"),
    [
        pytest.param(2000, 1000, 5, 40, id="a share of what the weights leave"),
        pytest.param(10**9, 64, 8, 64, id="no more than all sequences need"),
        pytest.param(2000, 700, 70, 70, id="one long sequence may take more"),
    ],
)
def test_blocks_by_memory(available: int, wanted: int, least: int, expected: int) -> None:
    blocks = plan_blocks(
        available=available, weight_bytes=1000, block_bytes=10, wanted_blocks=wanted, least_blocks=least
    )
    assert blocks == expected


@pytest.mark.parametrize("available", [1900, 900])
def test_too_little_for_one_sequence_is_refused_with_numbers(available: int) -> None:
    mib = 1 << 20
    with pytest.raises(Fault, match="1,000 MiB and one sequence of full length needs 800 MiB") as caught:
        plan_blocks(
            available=available * mib,
            weight_bytes=1000 * mib,
            block_bytes=10 * mib,
            wanted_blocks=160,
            least_blocks=80,
        )
    assert caught.value.kind is FaultKind.OUT_OF_MEMORY
    assert f"{available:,} MiB are available" in caught.value.message
