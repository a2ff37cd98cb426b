"""Whatever happens to a builder, the repository holds finished versions only."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.builder.conftest import CONFIG, Builder, Workshop, spawn, write_sparse_weights

LARGE = {**CONFIG, "vocab_size": 8_000_000}


@pytest.fixture
def large(workshop: Workshop) -> Workshop:
    """Half a gigabyte of weights that take no room until they are copied."""
    write_sparse_weights(workshop.sources / "model.safetensors", LARGE)
    workshop.edit_json("config.json", vocab_size=LARGE["vocab_size"])
    workshop.edit_yaml(vocab_size=LARGE["vocab_size"])
    return workshop


def start(workshop: Workshop, **options: Any) -> subprocess.Popen[str]:
    return spawn("package", "--model", workshop.recipe, "--out", workshop.repository, **options)


def wait_for_bytes(workshop: Workshop, process: subprocess.Popen[str]) -> Path:
    """Until the copy is under way: the staging folder."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        for path in workshop.repository.glob("tiny/.building-*/model.safetensors"):
            if path.stat().st_size > 2**20:
                return path.parent
        time.sleep(0.002)
    raise AssertionError(f"nothing was copied: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_an_interrupt_nothing_is_left(large: Workshop, number: signal.Signals) -> None:
    process = start(large)
    wait_for_bytes(large, process)
    process.send_signal(number)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; nothing was kept" in err
    assert "Traceback" not in err
    assert not large.repository.exists()


def test_after_a_kill_the_next_builder_cleans_up(large: Workshop, builder: Builder) -> None:
    process = start(large)
    staging = wait_for_bytes(large, process)
    process.kill()
    process.communicate()
    assert staging.exists()
    assert not (large.repository / "tiny/1").exists()
    assert builder("package", "--model", large.recipe, "--out", large.repository, "--link").code == 0
    assert [path.name for path in sorted((large.repository / "tiny").iterdir())] == ["1", "config.pbtxt"]


def test_a_builder_at_work_is_not_cleaned_up(large: Workshop, builder: Builder) -> None:
    process = start(large)
    staging = wait_for_bytes(large, process)
    process.send_signal(signal.SIGSTOP)
    try:
        assert builder("package", "--model", large.recipe, "--out", large.repository, "--link").code == 0
        assert staging.exists()
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(path.name for path in (large.repository / "tiny").iterdir()) == ["1", "2", "config.pbtxt"]


def test_a_file_system_that_takes_no_more(large: Workshop) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, 2**22))

    process = start(large, preexec_fn=limit)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "became full while writing tiny" in err
    assert "nothing was kept" in err
    assert not large.repository.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(workshop: Workshop, builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_output: object, _chunk: bytes) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr("builder.checkpoints.output.Output.write", full)
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    assert run.code == 6
    assert "No space left on device" in run.err
    assert not workshop.repository.exists()


def test_space_is_checked_first(
    workshop: Workshop, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(workshop.folder)
    monkeypatch.setattr("builder.write.shutil.disk_usage", lambda _path: usage._replace(free=1000))
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    assert run.code == 6
    assert "1000 B free" in run.err
    assert not workshop.repository.exists()


def peak_memory_kib(pid: int) -> int:
    """The process's own high-water mark; ``ru_maxrss`` begins with that of whoever started it."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def test_memory_stays_flat(large: Workshop) -> None:
    """Copying half a gigabyte takes the buffers and what the program itself needs."""
    process = start(large)
    peak_kib = 0
    while process.poll() is None:
        peak_kib = max(peak_kib, peak_memory_kib(process.pid))
        time.sleep(0.005)
    process.communicate()
    assert process.returncode == 0
    assert 0 < peak_kib < 300 * 1024


def test_the_repository_cannot_be_a_file(workshop: Workshop, builder: Builder) -> None:
    workshop.repository.write_text("hello")
    run = builder("package", "--model", workshop.recipe, "--out", workshop.repository)
    assert run.code == 2
    assert "is in the way" in run.err


def test_two_builders_take_two_numbers(workshop: Workshop) -> None:
    environment = dict(os.environ)
    processes = [
        spawn(
            "package",
            "--model",
            workshop.recipe,
            "--out",
            workshop.repository,
            "--dtype",
            dtype,
            env=environment,
        )
        for dtype in ("float32", "bfloat16", "float16")
    ]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    names = sorted(path.name for path in (workshop.repository / "tiny").iterdir())
    assert names == ["1", "2", "3", "config.pbtxt"]
