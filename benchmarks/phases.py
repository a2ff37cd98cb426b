"""What is asked of one running engine, and the figures that come out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.engines import Engine, Server
from benchmarks.load import Answer, EngineError, Streams
from benchmarks.machine import Bounds
from benchmarks.prompts import Prompts

PROMPT, OUTPUT, LONG_PROMPT = 128, 128, 1024
_WIDE_PROMPT = 600
_ALONE, _PREFILLS, _REPEATS = 2, 2, 2
_STALLED, _STALLING_PROMPT, _STALLED_OUTPUT = 8, 3000, 1500
_SETTLED, _BEFORE = 8, 40
"""Tokens of each stream until the pace is even, and those by which it is then judged."""

Values = dict[str, float]
Phase = tuple[str, Callable[[], Values]]


@dataclass(frozen=True, slots=True)
class Phases:
    """The phases of one visit; prompts are unique, and the same for every engine."""

    engine: Engine
    prompts: Prompts
    streams: Sequence[int]
    measure: Callable[[], Bounds]

    def __iter__(self) -> Iterator[Phase]:
        if self.engine.has_footprint:
            yield "memory", self.memory
        yield "one stream", self.alone
        yield f"prefill of {LONG_PROMPT}", self.prefill
        for count in self.streams:
            if count > 1:
                yield f"{count} streams", lambda count=count: self.together(count)  # type: ignore[misc]
        if self.engine.has_prefix_cache:
            yield "a repeated prefix", self.prefix
        if self.engine.is_stalled:
            yield "a long prompt beside running streams", self.stall

    def warm_up(self) -> None:
        self.engine.generate([self.prompts.one(PROMPT)], OUTPUT // 16)
        self.engine.generate(self.prompts.many(self.engine.setting.slots, PROMPT // 8), OUTPUT // 32)

    def memory(self) -> Values:
        """Right after ``warm_up``, with the buffers of a largest step in use and little of the KV cache."""
        self.engine.generate([self.prompts.one(_WIDE_PROMPT)], 1)
        warm = PROMPT + OUTPUT // 16 + self.engine.setting.slots * (PROMPT // 8 + OUTPUT // 32)
        return self.engine.footprint(warm + _WIDE_PROMPT)

    def alone(self) -> Values:
        """With the machine's bounds just before and after: how fast memory is changes within seconds."""
        answers, bounds = [], [self.measure()]
        for _ in range(_ALONE):
            answers.append(self.engine.generate([self.prompts.one(PROMPT)], OUTPUT)[0])
            bounds.append(self.measure())
        near = [before.best_of(after) for before, after in pairwise(bounds)]
        return {
            "decode_per_s": statistics.median(answer.decode_per_s for answer in answers),
            "first_token_ms": 1000 * statistics.median(answer.first_token_s for answer in answers),
            "read_gb_s": statistics.median(bound.read_gb_s for bound in near),
            "int8_gb_s": statistics.median(bound.int8_gb_s for bound in near),
        }

    def prefill(self) -> Values:
        before = self.measure()
        times = [self._first_token_s(self.prompts.one(LONG_PROMPT)) for _ in range(_PREFILLS)]
        fma = before.best_of(self.measure()).fma_gflop_s
        return {"prefill_per_s": LONG_PROMPT / statistics.median(times), "fma_gflop_s": fma}

    def together(self, count: int) -> Values:
        return output_rate(self.engine.generate(self.prompts.many(count, PROMPT), OUTPUT), count)

    def prefix(self) -> Values:
        shares = []
        for _ in range(_REPEATS):
            prompt = self.prompts.one(LONG_PROMPT)
            first, again = self._first_token_s(prompt), self._first_token_s(prompt)
            shares.append(100 * again / first)
        return {"prefix_share": statistics.median(shares)}

    def stall(self) -> Values:
        engine = self.engine
        if not isinstance(engine, Server):
            raise EngineError("streams need a server")
        bodies = [engine.body(prompt, _STALLED_OUTPUT) for prompt in self.prompts.many(_STALLED, PROMPT)]
        streams = Streams(engine.port, bodies)
        try:
            streams.wait_for(_SETTLED + _BEFORE)
            answer = engine.generate([self.prompts.one(_STALLING_PROMPT)], 2)[0]
        finally:
            streams.close()
        arrived = answer.arrivals[0]
        settled = max(stream.arrivals[_SETTLED] for stream in streams.answers)
        before = statistics.median(streams.gaps_between(settled, answer.sent))
        during = percentile(streams.gaps_between(answer.sent, arrived), 99)
        return {
            "gap_before_ms": 1000 * before,
            "gap_during_p99_ms": 1000 * during,
            "stall": during / before,
            "stalling_first_token_s": answer.first_token_s,
        }

    def _first_token_s(self, prompt: list[int]) -> float:
        return self.engine.generate([prompt], 1)[0].first_token_s


def output_rate(answers: Sequence[Answer], count: int) -> Values:
    """Output tokens over the whole time, prefill included, and the median gap."""
    wall = max(answer.arrivals[-1] for answer in answers) - min(answer.sent for answer in answers)
    values = {f"output_per_s_{count}": sum(answer.tokens for answer in answers) / wall}
    gaps = [gap for answer in answers for gap in answer.gaps]
    if gaps:
        values[f"gap_ms_{count}"] = 1000 * statistics.median(gaps)
    return values


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many percent do not exceed. Raises ``EngineError`` for no values."""
    if not values:
        raise EngineError("no token came in the time that is judged")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(percent * len(ordered)) // 100) - 1))]
