"""The machine: what it is, and what it can do at most."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import run
from benchmarks.load import EngineError

_SOURCE = Path(__file__).with_name("bounds.c")
_MEGABYTES = 1024
_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "sve",
)
"""What kernels of the engines choose between."""

_NUMPY = """
import json, time, numpy as np
a = np.ones((2048, 2048), np.float32); big = np.ones(1 << 28, np.float32)
def best(f):
    times = []
    for _ in range(5):
        begin = time.perf_counter(); f(); times.append(time.perf_counter() - begin)
    return min(times)
read, fma = big.nbytes / best(big.sum), 2 * 2048**3 / best(lambda: a @ a)
print(json.dumps({"read_gb_s": read / 1e9, "fma_gflop_s": fma / 1e9}))
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that the chosen CPUs were seen to do."""

    read_gb_s: float
    fma_gflop_s: float
    method: str

    def best_of(self, other: Bounds) -> Bounds:
        """A bound is a maximum: neighbours can only lower what is seen."""
        read = max(self.read_gb_s, other.read_gb_s)
        return Bounds(read, max(self.fma_gflop_s, other.fma_gflop_s), self.method)


def measure_bounds(cache: Path, cpus: tuple[int, ...]) -> Bounds:
    """Raises ``EngineError``."""
    pin = ["taskset", "-c", ",".join(map(str, cpus))]
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        said = run([*pin, sys.executable, "-c", _NUMPY], "measuring bounds")
        return _bounds(said, "numpy: sum on one thread, sgemm; no C compiler was found")
    program = cache / "bounds"
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
    run([compiler, *flags, str(_SOURCE), "-o", str(program)], "compiling bounds.c")
    said = run([*pin, str(program), str(len(cpus)), str(_MEGABYTES)], "measuring bounds")
    return _bounds(said, "C: reads of 1 GiB in huge pages, independent chains of multiply-adds in registers")


def _bounds(said: str, method: str) -> Bounds:
    try:
        values = json.loads(said)
        return Bounds(float(values["read_gb_s"]), float(values["fma_gflop_s"]), method)
    except (ValueError, KeyError) as error:
        raise EngineError(f"measuring bounds: {error!r}") from None


def facts(cpus: tuple[int, ...]) -> dict[str, str]:
    """What a reader of the figures must know."""
    processor = _cpuinfo()
    has = set((processor.get("flags") or processor.get("Features") or "").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": processor.get("model name", platform.machine()),
        "instructions": " ".join(flag for flag in _FLAGS if flag in has),
        "cores": f"{os.cpu_count()} in the machine, {len(cpus)} used ({', '.join(map(str, cpus))})",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before": load,
    }


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
