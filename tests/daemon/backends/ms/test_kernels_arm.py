"""The kernels built for 64-bit Arm, run by an emulator: the same bits as on this machine.

``bash scripts/install-arm-tools`` installs what it takes; without it these tests are skipped.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from daemon.backends.ms.kernels import LIBRARY

ROOT = Path(__file__).resolve().parents[4]
SOURCES = LIBRARY.parent
DRIVER = Path(__file__).with_name("kernels_driver.cc")
CROSS = "aarch64-linux-gnu"
CROSS_ENVIRONMENT = {
    "CC": f"{CROSS}-gcc",
    "CXX": f"{CROSS}-g++",
    "_PYTHON_HOST_PLATFORM": "linux-aarch64",
}
PROCESSORS = {"cortex-a57": "neon", "neoverse-n1": "dotprod", "max": "i8mm"}
"""Emulated processors, and the best instruction set that each has."""

Results = dict[str, bytes]


def skip_reason() -> str:
    if platform.machine() not in {"x86_64", "AMD64"}:
        return "compares with x86; on Arm itself the other tests of the kernels run natively"
    needed = [[f"{CROSS}-g++"], ["qemu-aarch64-static", "qemu-aarch64"], ["g++"]]
    missing = [names[0] for names in needed if not any(map(shutil.which, names))]
    return f"{', '.join(missing)} not found: bash scripts/install-arm-tools" if missing else ""


reason = skip_reason()
pytestmark = pytest.mark.skipif(bool(reason), reason=reason)


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def compile_driver(compiler: str, library: Path, target: Path) -> Path:
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror")
    linking = (f"-L{library.parent}", f"-l:{library.name}", f"-Wl,-rpath,$ORIGIN:{library.parent}")
    run(compiler, *flags, DRIVER, *linking, "-o", target)
    return target


def build_for_arm() -> Path:
    """A folder with the library and its driver, kept in ``build`` until a source changes."""
    digest = hashlib.sha256(run(f"{CROSS}-g++", "--version").encode())
    for path in (ROOT / "setup.py", DRIVER, *sorted(SOURCES.glob("*.cc")), *sorted(SOURCES.glob("*.h"))):
        digest.update(path.name.encode() + path.read_bytes())
    folder = ROOT / "build" / "arm" / digest.hexdigest()[:16]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        built, objects = Path(scratch, "built"), Path(scratch, "objects")
        options = ("--build-lib", built, "--build-temp", objects)
        run(sys.executable, "setup.py", "-q", "build_ext", *options, **CROSS_ENVIRONMENT)
        library = built / LIBRARY.relative_to(ROOT)
        assert library.is_file(), "the kernels were not built for Arm"
        library.rename(built / library.name)
        compile_driver(f"{CROSS}-g++", built / library.name, built / "driver")
        built.rename(folder)
    return folder


def read(path: Path) -> Results:
    """Records of the driver: name, count, floats."""
    results, data, at = {}, path.read_bytes(), 0
    while at < len(data):
        end = data.index(b"\n", at)
        name, count = data[at:end].decode().split()
        at = end + 1 + 4 * int(count)
        results[name] = data[end + 1 : at]
    return results


@dataclass(frozen=True)
class Arm:
    """The driver under emulation."""

    folder: Path

    def command(self, processor: str) -> list[str | Path]:
        emulator = shutil.which("qemu-aarch64-static") or "qemu-aarch64"
        # The compiler knows where the libraries of the other machine lie.
        libc = Path(run(f"{CROSS}-g++", "-print-file-name=libc.so.6").strip()).resolve()
        return [emulator, "-cpu", processor, "-L", libc.parent.parent, self.folder / "driver"]

    def best(self, processor: str) -> str:
        return run(*self.command(processor)).strip()

    def status(self, processor: str, isa: str, output: Path) -> int:
        return subprocess.run([*self.command(processor), isa, output], check=False).returncode


@pytest.fixture(scope="module")
def arm() -> Arm:
    return Arm(build_for_arm())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What this machine computes with the best it has."""
    folder = tmp_path_factory.mktemp("host")
    driver = compile_driver("g++", LIBRARY, folder / "driver")
    run(driver, run(driver).strip(), folder / "results")
    return read(folder / "results")


def test_the_results_to_compare_are_numbers(expected: Results) -> None:
    for name, data in expected.items():
        values = np.frombuffer(data, np.float32)
        if name.startswith("model/"):
            assert np.isfinite(values).all(), name
            assert np.unique(values).size > 0.9 * values.size, name
    assert len(expected) > 150


@pytest.mark.parametrize(("processor", "isa"), PROCESSORS.items())
def test_the_best_instruction_set_is_chosen(arm: Arm, processor: str, isa: str) -> None:
    assert arm.best(processor) == isa


@pytest.mark.parametrize(("processor", "isa"), [("cortex-a57", "dotprod"), ("neoverse-n1", "i8mm")])
def test_what_a_processor_lacks_is_refused(arm: Arm, tmp_path: Path, processor: str, isa: str) -> None:
    assert arm.status(processor, isa, tmp_path / "results") == 3


@pytest.mark.parametrize(("processor", "isa"), [("cortex-a57", "portable"), *PROCESSORS.items()])
def test_the_bits_are_those_of_this_machine(
    arm: Arm, expected: Results, tmp_path: Path, processor: str, isa: str
) -> None:
    assert arm.status(processor, isa, tmp_path / "results") == 0
    results = read(tmp_path / "results")
    assert results.keys() == expected.keys()
    assert not [name for name, data in expected.items() if results[name] != data]
