"""``python -m benchmarks``: see options.py."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.converted import CTranslate2, OpenVino
from benchmarks.engines import Engine, Setting
from benchmarks.lines import ROOT
from benchmarks.llamacpp import LlamaCpp
from benchmarks.load import EngineError
from benchmarks.machine import facts
from benchmarks.mindport import MindPort
from benchmarks.options import parse
from benchmarks.parts import PARTS
from benchmarks.report import Report, Run
from benchmarks.rounds import rounds
from benchmarks.subject import OURS, Subject
from benchmarks.synthetic import BENCHMARK, TRIAL, make_folder
from benchmarks.torch_transformers import Transformers
from benchmarks.variants import variants
from benchmarks.visits import Diary, Visitor
from benchmarks.vllm import Vllm

ENGINES: dict[str, type[Engine]] = {
    OURS: MindPort,
    "llama.cpp": LlamaCpp,
    "ctranslate2": CTranslate2,
    "openvino": OpenVino,
    "vllm": Vllm,
    "transformers": Transformers,
}
_PLACES = {"--cache": "", "--out": "", "--llama-server": "build/bin/llama-server"}
_ABOUT_RESULTS = ("--resume", "--write-docs", "--no-install")


def main(arguments: Sequence[str]) -> int:
    begin = time.monotonic()
    options = parse(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    machine = facts(options.cpus)
    _step_aside(options.cpus)
    shape = TRIAL if options.small else BENCHMARK
    say(f"model: {shape.name}, in {options.cache}")
    setting = Setting(options, shape, make_folder(shape.name, shape.to_config(), options.cache / "models"))
    run = Run(repeatable(arguments), machine, options.streams)
    try:
        diary = Diary.open(options.out / "visits.jsonl", options.resume)
        diary.forget(options.again)
        visitor = Visitor(setting, diary, say)
        for _ in measure(visitor, begin):
            # After each part and round, so that a run that is cut short leaves what it has.
            Report(run, shape, variants(setting), visitor.diary.visits).write(options.out)
        report = Report(run, shape, variants(setting), visitor.diary.visits)
        print(report.text())
        minutes = (time.monotonic() - begin) / 60
        say(f"written in {minutes:.0f} minutes: {options.out}/results.txt, .md, .json, .svg")
        if options.write_docs:
            report.write_documents(ROOT / "docs", options.cache)
    except EngineError as error:
        say(f"error: {error}")
        return 1
    return 0 if any(visit.values for visit in visitor.diary.visits) else 1


def measure(visitor: Visitor, begin: float) -> Iterator[None]:
    """Everything once; then, while there is time, the peers that matter again. Yields now and then."""
    options = visitor.setting.options
    engines = prepare(visitor) if "peers" in options.parts else []
    for number in range(options.rounds if engines else 1):
        left = 60 * options.minutes - (time.monotonic() - begin)
        for _ in rounds(visitor, engines, number, left):
            yield
        if number == 0:
            for part in options.parts:
                if part in PARTS:
                    try:
                        PARTS[part](visitor)
                    except EngineError as error:
                        visitor.lack(part, Subject(OURS, part, 0, 0), str(error))
                    yield


def prepare(visitor: Visitor) -> list[Engine]:
    """Every engine that can be measured; the others are noted with their reasons."""
    setting, engines = visitor.setting, []
    for weight_format in setting.options.formats:
        for name in (OURS, *setting.options.peers):
            say(f"preparing {name} {weight_format}")
            try:
                engine = ENGINES[name](setting, weight_format)
                engine.prepare()
                engines.append(engine)
            except EngineError as error:
                visitor.lack("peers", Subject(name, weight_format, 0, 0), str(error))
    return engines


def repeatable(arguments: Sequence[str]) -> str:
    """The command as another machine would be given it: without where things lie on this one."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        name, _, value = word.partition("=")
        if name in _PLACES:
            value = value or next(rest, "")
            words += [name, _PLACES[name]] if _PLACES[name] else []
        elif name not in _ABOUT_RESULTS:
            words.append(word)
    return shlex.join(["bash", "scripts/bench", *words])


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


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
