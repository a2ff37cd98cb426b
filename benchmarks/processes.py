"""An engine's processes: started on some CPUs, watched, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.load import EngineError

START_S = 300.0
STOP_S = 20.0
_POLL_S = 0.02


class Process:
    """A command, with all the processes that it starts."""

    def __init__(
        self,
        command: list[str],
        cpus: tuple[int, ...],
        log: Path,
        env: Mapping[str, str] | None = None,
        start_limit_s: float = START_S,
    ) -> None:
        self.log = log
        self._start_limit_s = start_limit_s
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                # The affinity is inherited, so that the engine sees its CPUs from the first instruction.
                ["taskset", "-c", ",".join(map(str, cpus)), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if log.suffix == ".json" else file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": str(len(cpus)), **(env or {})},
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Raises ``EngineError`` when the process ends first or takes too long."""
        limit = time.monotonic() + self._start_limit_s
        while not ready():
            if self._process.poll() is not None:
                raise EngineError(f"it ended at start: {self.last_words()}")
            if time.monotonic() > limit:
                raise EngineError(f"it was not ready after {self._start_limit_s:.0f} s: {self.last_words()}")
            time.sleep(_POLL_S)

    def ask(self, line: bytes) -> bytes:
        """A line for a line, of a process whose log ends in .json. Raises ``EngineError``."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EngineError("it is not asked by lines")
        try:
            if line:
                stdin.write(line + b"\n")
                stdin.flush()
            answer = stdout.readline()
        except OSError:
            answer = b""
        if not answer:
            raise EngineError(f"it ended: {self.last_words()}")
        return answer

    def stop(self) -> None:
        """Ends the command and whatever it leaves behind."""
        family = family_of(self._process.pid)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def peak_bytes(self) -> int:
        """Peak memory of the command and all that it started, together."""
        return sum(memory_bytes(process) for process in family_of(self._process.pid))

    def cpu_seconds(self) -> float:
        """Processor time of the command and all that it started."""
        return sum(map(_cpu_seconds, family_of(self._process.pid)))

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1][-300:] if lines else "it said nothing"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def family_of(ancestor: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    family = [ancestor]
    for member in family:
        family += [process for process, parent in parents.items() if parent == member]
    return family


def busy_seconds(cpus: tuple[int, ...]) -> float:
    """Time that these CPUs spent on anything, for anybody."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    rows = (line.split() for line in Path("/proc/stat").read_text("ascii").splitlines())
    # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen by the host
    busy = [sum(map(int, (*row[1:4], *row[6:9]))) for row in rows if row[0] in wanted]
    return sum(busy) / os.sysconf("SC_CLK_TCK")


def _parent(entry: Path) -> int | None:
    numbers = _stat(entry)
    return int(numbers[1]) if numbers else None


def _cpu_seconds(process: int) -> float:
    numbers = _stat(Path("/proc") / str(process))
    return sum(map(int, numbers[11:13])) / os.sysconf("SC_CLK_TCK") if numbers else 0.0


def _stat(entry: Path) -> list[str]:
    """What follows the name, which is in brackets and may hold anything, brackets too."""
    try:
        return (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def memory_bytes(process: int, name: str = "VmHWM") -> int:
    """Peak memory, or with ``VmRSS`` what is resident now."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
