"""Visits to engines: start, ask, watch the neighbours, stop; kept on disk as they are made."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.engines import Engine, Setting
from benchmarks.load import EngineError
from benchmarks.machine import Bounds, measure_bounds
from benchmarks.phases import PROMPT, Phase, Phases
from benchmarks.processes import busy_seconds
from benchmarks.prompts import Prompts
from benchmarks.subject import Subject, Visit

DISTURBED = 5.0
"""Percent of the CPUs' time that went to others: from here on a visit is repeated, and then marked."""
_QUIET_S, _PATIENCE_S = 1.0, 30.0
_EXACT = 32
"""Bits of a weight with which equal greedy tokens mean an equal function; rounded ones soon differ."""
_CHECK_PROMPTS, _CHECK_TOKENS = 4, 32
_GREEDY_SEED, _WARM_SEED, _ROUND_SEED = 1, 2, 1000

Say = Callable[[str], None]


@dataclass(slots=True)
class Diary:
    """All visits of a run, in a file that grows by a line each, so that a run cut short loses nothing."""

    path: Path
    visits: list[Visit] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, resume: bool) -> Diary:
        """Raises ``EngineError`` when there is something else in the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume or not path.is_file():
            path.write_text("", "utf-8")
            return cls(path)
        try:
            lines = path.read_text("utf-8").splitlines()
            return cls(path, [Visit.from_data(json.loads(line)) for line in lines])
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"--resume: {path} cannot be read: {error!r}") from None

    def has(self, part: str, name: str, number: int) -> bool:
        """Whether this visit was made, without a problem."""
        return any(visit.key == (part, name, number) and not visit.problem for visit in self.visits)

    def forget(self, parts: tuple[str, ...]) -> None:
        """So that these parts are measured again."""
        self.visits = [visit for visit in self.visits if visit.part not in parts]
        self._write()

    def add(self, visit: Visit) -> None:
        """In place of an earlier one that failed."""
        self.visits = [old for old in self.visits if old.key != visit.key]
        self.visits.append(visit)
        self._write()

    def _write(self) -> None:
        text = "".join(json.dumps(visit.to_data(), ensure_ascii=False) + "\n" for visit in self.visits)
        self.path.write_text(text, "utf-8")


class Visitor:
    """Makes visits, one engine at a time."""

    def __init__(self, setting: Setting, diary: Diary, say: Say) -> None:
        self.setting = setting
        self.diary = diary
        self.say = say

    def round(self, engine: Engine, number: int) -> None:
        """All phases of an engine."""
        if self.diary.has("peers", engine.name, number):
            return
        self.say(f"round {number + 1}: {engine.name}")
        self._keep(lambda: self._peer(engine, number))

    def visit(
        self, part: str, engine: Engine, ask: Callable[[Engine], dict[str, float]], number: int = 0
    ) -> None:
        """One engine of another part; what ``ask`` returns is kept."""
        if self.diary.has(part, engine.name, number):
            return
        self.say(f"{part}: {engine.name}")

        def make() -> Visit:
            visit = Visit(part, number, engine.subject)
            self._started(visit, engine, [("", lambda: ask(engine))])
            return visit

        self._keep(make)

    def _keep(self, make: Callable[[], Visit]) -> None:
        """Once more when others took the engine's CPUs; the better visit is kept."""
        visit = make()
        if visit.values.get("others_share", 0) > DISTURBED:
            self.say(f"  others took {visit.values['others_share']:.0f} % of its CPUs: once more")
            visit = min((visit, make()), key=_flaws)
        self.diary.add(visit)

    def measure(self) -> Bounds:
        """The machine's bounds now."""
        return measure_bounds(self.setting.options)

    def lack(self, part: str, subject: Subject, reason: str) -> None:
        """Note what cannot be measured."""
        self.say(f"{part}: {subject.name}: {reason}")
        self.diary.add(Visit(part, 0, subject, problem=reason))

    def _peer(self, engine: Engine, number: int) -> Visit:
        visit = Visit("peers", number, engine.subject)
        vocab = self.setting.shape.vocab
        phases = Phases(
            engine, Prompts(vocab, _ROUND_SEED + number), self.setting.options.streams, self.measure
        )

        def prepare() -> dict[str, float]:
            Phases(engine, Prompts(vocab, _WARM_SEED), (), self.measure).warm_up()
            if number == 0 and engine.subject.width == _EXACT:
                checks = Prompts(vocab, _GREEDY_SEED).many(_CHECK_PROMPTS, PROMPT // 4)
                visit.greedy = [engine.greedy(prompt, _CHECK_TOKENS) for prompt in checks]
            return {}

        begin = time.perf_counter()
        self._started(visit, engine, [("warming up", prepare), *phases])
        visit.values["visit_s"] = time.perf_counter() - begin
        return visit

    def _started(self, visit: Visit, engine: Engine, phases: list[Phase]) -> None:
        """A phase that fails costs its own figures, and those of the others only if the engine ended."""
        if not self._attempt(visit, "reading its files", lambda: fill_page_cache(engine.source())):
            return
        wait_for_quiet(self.setting.options.cpus)
        visit.values["load"] = os.getloadavg()[0]
        begin = time.perf_counter()
        try:
            if not self._attempt(visit, "start", engine.start):
                return
            visit.values["cold_start_s"] = time.perf_counter() - begin
            with _watch_others(engine, self.setting.options.cpus, visit.values):
                for name, phase in phases:
                    if not self._attempt(visit, name, phase) and not engine.is_running:
                        break
            visit.values["peak_mb"] = engine.peak_bytes() / 1e6
        finally:
            engine.stop()

    def _attempt(self, visit: Visit, name: str, phase: Callable[[], dict[str, float] | None]) -> bool:
        """Whether the phase succeeded; the first problem is noted."""
        try:
            visit.values |= phase() or {}
        except (EngineError, KeyError, IndexError, TypeError, ValueError) as error:
            problem = f"{name}: {error}" if name else str(error)
            visit.problem = visit.problem or problem
            self.say(f"  {problem}")
            return False
        return True


def _flaws(visit: Visit) -> tuple[bool, float]:
    """Least for the visit to keep."""
    return bool(visit.problem), visit.values.get("others_share", 100.0)


def fill_page_cache(source: Path) -> None:
    """Read a file, or all in a folder, so that no start waits for the disk. Raises ``EngineError``."""
    room = memoryview(bytearray(1 << 22))
    try:
        for path in filter(Path.is_file, source.rglob("*")) if source.is_dir() else [source]:
            with path.open("rb", buffering=0) as file:
                while file.readinto(room):
                    pass
    except OSError as error:
        raise EngineError(f"{source} cannot be read: {error}") from None


def wait_for_quiet(cpus: tuple[int, ...]) -> None:
    """Until others leave the CPUs alone, but not for ever."""
    limit = time.monotonic() + _PATIENCE_S
    while time.monotonic() < limit:
        busy = busy_seconds(cpus)
        time.sleep(_QUIET_S)
        if 100 * (busy_seconds(cpus) - busy) / (len(cpus) * _QUIET_S) <= DISTURBED:
            return


@contextmanager
def _watch_others(engine: Engine, cpus: tuple[int, ...], values: dict[str, float]) -> Iterator[None]:
    """How much of the CPUs went to others meanwhile: the first thing to look at when figures surprise."""
    begin, busy, own = time.perf_counter(), busy_seconds(cpus), _own_seconds(engine)
    try:
        yield
    finally:
        others = busy_seconds(cpus) - busy - (_own_seconds(engine) - own)
        values["others_share"] = max(0.0, 100 * others / (len(cpus) * (time.perf_counter() - begin)))


def _own_seconds(engine: Engine) -> float:
    """Of the engine, and of the program that measures the bounds, which runs on the same CPUs."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return engine.cpu_seconds() + children.ru_utime + children.ru_stime
