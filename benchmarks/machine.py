"""The machine: what it is, and what it can do at most."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from benchmarks.environments import run
from benchmarks.load import EngineError
from benchmarks.options import Options

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


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that the chosen CPUs were seen to do."""

    read_gb_s: float
    fma_gflop_s: float
    int8_gb_s: float
    """Weights read by int8 dot products with a vector."""

    def best_of(self, other: Bounds) -> Bounds:
        """A bound is a maximum: neighbours can only lower what is seen."""
        return Bounds(*map(max, astuple(self), astuple(other)))

    def to_values(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, float]) -> Bounds | None:
        names = [field.name for field in fields(cls)]
        return cls(*(values[name] for name in names)) if set(names) <= set(values) else None


def measure_bounds(options: Options) -> Bounds:
    """Raises ``EngineError``."""
    cpus, program = options.cpus, options.cache / f"bounds-{options.isa or 'native'}"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        raise EngineError("measuring the machine's bounds needs a C compiler: cc, gcc or clang")
    if not program.is_file() or program.stat().st_mtime < _SOURCE.stat().st_mtime:
        target = ["-mavx2", "-mfma"] if options.isa == "avx2" else ["-march=native"]
        flags = ["-O3", *target, "-ffp-contract=fast", "-pthread"]
        run([compiler, *flags, str(_SOURCE), "-o", str(program)], "compiling bounds.c")
    pin = ["taskset", "-c", ",".join(map(str, cpus))]
    said = run([*pin, str(program), str(len(cpus)), str(_MEGABYTES)], "measuring bounds")
    try:
        return Bounds(**{name: float(value) for name, value in json.loads(said).items()})
    except (ValueError, TypeError) as error:
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
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "load before": load,
    }


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
