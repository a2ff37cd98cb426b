"""``python -m benchmarks``: see options.py."""

from __future__ import annotations

import os
import shlex
import signal
import sys

from benchmarks.engines import Engine, Setting
from benchmarks.llamacpp import LlamaCpp
from benchmarks.load import EngineError
from benchmarks.machine import facts
from benchmarks.measure import Result, run_rounds
from benchmarks.mindport import MindPort
from benchmarks.options import NOT_WIRED, parse
from benchmarks.report import Report, Run
from benchmarks.static_transformers import Transformers
from benchmarks.synthetic import BENCHMARK, TRIAL, make_folder
from benchmarks.table import add_shares

ENGINES: dict[str, type[Engine]] = {"mindport": MindPort, "llama.cpp": LlamaCpp, "transformers": Transformers}


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    _step_aside(options.cpus)
    shape = TRIAL if options.small else BENCHMARK
    say(f"model: {shape.name}, in {options.cache}")
    setting = Setting(options, shape, make_folder(shape, options.cache / "models"))
    results, missing = prepare(setting)
    run = Run(shlex.join(["bash", "scripts/bench", *arguments]), facts(options.cpus), options.streams)
    text = ""
    try:
        for rounds, bounds in enumerate(run_rounds(results, setting, say), 1):
            # After each round, so that a run that is cut short leaves what it has.
            add_shares(results, shape, bounds)
            broken = {result.engine.name: result.problem for result in results if result.problem}
            report = Report(run, shape, bounds, rounds, results, missing | broken)
            report.write(options.out)
            text = report.text()
    except EngineError as error:
        say(f"error: {error}")
    print(text)
    say(f"written: {options.out}/results.txt, .md, .json, .svg")
    return 0 if any(result.samples for result in results) else 1


def prepare(setting: Setting) -> tuple[list[Result], dict[str, str]]:
    """Every engine that can be measured, and the others with their reasons."""
    results, missing = [], {}
    for weight_format in setting.options.formats:
        for name in ("mindport", *setting.options.peers):
            if name in NOT_WIRED:
                missing[name] = "not wired into this benchmark yet"
                continue
            engine = ENGINES[name](setting, weight_format)
            say(f"preparing {engine.name}")
            try:
                engine.prepare()
                results.append(Result(engine))
            except EngineError as error:
                missing[engine.name] = str(error)
                say(f"  {error}")
    return results, missing


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _step_aside(cpus: tuple[int, ...]) -> None:
    """The load generator keeps off the engines' CPUs where there are others."""
    others = os.sched_getaffinity(0) - set(cpus)
    if others:
        os.sched_setaffinity(0, others)


def _end(number: int, _frame: object) -> None:
    """The engine that runs is stopped on the way out."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _end)
    raise SystemExit(main(sys.argv[1:]))
