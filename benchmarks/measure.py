"""The phases of one engine, and rounds in which the engines take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.engines import Engine, Setting
from benchmarks.load import Answer, EngineError
from benchmarks.machine import Bounds, measure_bounds
from benchmarks.processes import busy_seconds
from benchmarks.prompts import Prompts

PROMPT, OUTPUT, LONG_PROMPT = 128, 128, 1024
_CHECK_PROMPTS, _CHECK_TOKENS = 4, 32
_PREFILLS = 2
_GREEDY_SEED, _WARM_SEED, _ROUND_SEED = 1, 2, 1000

Say = Callable[[str], None]


@dataclass(slots=True)
class Result:
    """What was seen of one engine."""

    engine: Engine
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Metric to one value a round."""
    greedy: list[list[str]] = field(default_factory=list)
    problem: str = ""
    """Why it has no figures, or no more of them."""

    def add(self, values: dict[str, float]) -> None:
        for metric, value in values.items():
            self.samples.setdefault(metric, []).append(value)

    def median(self, metric: str) -> float | None:
        values = self.samples.get(metric)
        return statistics.median(values) if values else None


def run_rounds(results: list[Result], setting: Setting, say: Say) -> Iterator[Bounds]:
    """A B C A B C: one engine at a time, the others stopped. After each round the bounds so far.

    Raises ``EngineError`` when the bounds cannot be measured.
    """
    options = setting.options
    bounds = measure_bounds(options.cache, options.cpus)
    for number in range(options.rounds):
        for result in results:
            if result.problem:
                continue
            say(f"round {number + 1} of {options.rounds}: {result.engine.name}")
            try:
                _one_round(result, setting, number)
            except (EngineError, KeyError, IndexError) as error:
                result.problem = f"round {number + 1}: {error}"
                say(f"  {result.problem}")
        bounds = bounds.best_of(measure_bounds(options.cache, options.cpus))
        yield bounds


def _one_round(result: Result, setting: Setting, number: int) -> None:
    engine = result.engine
    begin = time.perf_counter()
    engine.start()
    try:
        values = {"cold_start_s": time.perf_counter() - begin}
        _warm_up(engine, setting)
        if number == 0:
            prompts = Prompts(setting.shape.vocab, _GREEDY_SEED).many(_CHECK_PROMPTS, PROMPT // 4)
            result.greedy = [engine.greedy(prompt, _CHECK_TOKENS) for prompt in prompts]
        with _watch_others(engine, setting.options.cpus, values):
            values |= _phases(engine, setting, Prompts(setting.shape.vocab, _ROUND_SEED + number))
        values["peak_mb"] = engine.peak_bytes() / 1e6
    finally:
        engine.stop()
    result.add(values)


@contextmanager
def _watch_others(engine: Engine, cpus: tuple[int, ...], values: dict[str, float]) -> Iterator[None]:
    """How much of the CPUs went to others meanwhile: the first thing to look at when figures surprise."""
    begin, busy, own = time.perf_counter(), busy_seconds(cpus), engine.cpu_seconds()
    yield
    others = busy_seconds(cpus) - busy - (engine.cpu_seconds() - own)
    values["others_share"] = max(0.0, 100 * others / (len(cpus) * (time.perf_counter() - begin)))


def _warm_up(engine: Engine, setting: Setting) -> None:
    prompts = Prompts(setting.shape.vocab, _WARM_SEED)
    engine.generate([prompts.one(PROMPT)], 8)
    engine.generate(prompts.many(setting.slots, 16), 4)


def _phases(engine: Engine, setting: Setting, prompts: Prompts) -> dict[str, float]:
    alone = engine.generate([prompts.one(PROMPT)], OUTPUT)[0]
    long = [_timed(engine, prompts.one(LONG_PROMPT)) for _ in range(_PREFILLS)]
    values = {
        "decode_per_s": alone.decode_per_s,
        "first_token_ms": 1000 * alone.first_token_s,
        "prefill_per_s": LONG_PROMPT / statistics.median(long),
    }
    for streams in setting.options.streams:
        if streams > 1:
            values |= _together(engine.generate(prompts.many(streams, PROMPT), OUTPUT), streams)
    return values


def _timed(engine: Engine, prompt: list[int]) -> float:
    return engine.generate([prompt], 1)[0].first_token_s


def _together(answers: list[Answer], streams: int) -> dict[str, float]:
    wall = max(answer.arrivals[-1] for answer in answers) - min(answer.sent for answer in answers)
    values = {f"output_per_s_{streams}": sum(answer.tokens for answer in answers) / wall}
    gaps = [gap for answer in answers for gap in answer.gaps]
    if gaps:
        values[f"gap_ms_{streams}"] = 1000 * statistics.median(gaps)
    return values
