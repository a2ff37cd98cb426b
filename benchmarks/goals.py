"""What MindPort is held to, and whether this run met it: computed from the visits."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.machine import Bounds
from benchmarks.phases import LONG_PROMPT, PROMPT
from benchmarks.phases import OUTPUT as ANSWER
from benchmarks.subject import IDLE, Result, Visit, best_peer, ratio, results_of
from benchmarks.synthetic import Shape
from benchmarks.variants import OUTPUT, Arithmetic, Variant

_READ_SHARE = {32: 80, 16: 80, 8: 80, 4: 65}
_OVER_LLAMA = {32: 1.0, 8: 1.2, 4: 1.2}
_PREFILL_OVER = {32: 1.2, 8: 1.2, 4: 1.6}
_OUTPUT_OVER = 1.6
_SAME = {8: 99, 4: 95}
_UNIT_DIGITS = {"%": 1, " ×": 2, " ms": 1, " s": 1, " MB": 0}


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table."""

    figure: str
    limit: float
    unit: str
    value: float | None = None
    """``None``: not measured."""
    at_most: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def cells(self) -> list[str]:
        met = {True: "yes", False: "no", None: "not measured"}[self.is_met]
        sign = "≤" if self.at_most else "≥"
        measured = "–" if self.value is None else f"{self.value:.{_UNIT_DIGITS[self.unit]}f}{self.unit}"
        note = f" ({self.note})" if self.note else ""
        return [self.figure, f"{sign} {self.limit:g}{self.unit}", measured + note, met]


HEADER = ["figure", "goal", "measured", "met"]


def goals(
    visits: Sequence[Visit], shape: Shape, streams: Sequence[int], variants: Sequence[Variant]
) -> list[Goal]:
    """Every goal, in the order of the table."""
    peers = results_of(visits, "peers")
    ours = [result for result in peers if result.subject.is_ours]
    return [
        *_decode(ours, peers),
        *_prefill(ours, peers, shape),
        *_output(ours, peers, streams, shape),
        *_waiting(ours),
        *_shapes(results_of(visits, "variants"), variants),
        *_threads(results_of(visits, "threads")),
        *_quality(results_of(visits, "quality")),
        *_daemon(ours, results_of(visits, "daemon")),
    ]


def rows(found: Sequence[Goal]) -> list[list[str]]:
    return [HEADER, *(goal.cells for goal in found)]


def _decode(ours: Sequence[Result], peers: Sequence[Result]) -> Iterator[Goal]:
    for result in ours:
        width, name = result.subject.width, result.subject.format
        yield Goal(
            f"decode, one stream, {name}, of the read bound",
            _READ_SHARE[width],
            "%",
            _median(read_shares(result)),
        )
        if width in _OVER_LLAMA:
            value = _over(result, _llama(peers, width), "decode_per_s")
            yield Goal(f"decode, one stream, {name}, over llama.cpp", _OVER_LLAMA[width], " ×", value)


def _prefill(ours: Sequence[Result], peers: Sequence[Result], shape: Shape) -> Iterator[Goal]:
    for result in ours:
        width, name = result.subject.width, result.subject.format
        if width == 32:
            value = _median(fma_shares(result, shape))
            yield Goal(f"prefill 1024, {name}, of the FMA peak", 80, "%", value)
        if width in _PREFILL_OVER:
            yield _over_best(f"prefill 1024, {name}", _PREFILL_OVER[width], result, peers, "prefill_per_s")
        if width == 8:
            value = _over(result, _llama(peers, width), "prefill_per_s")
            yield Goal(f"prefill 1024, {name}, over llama.cpp", 2.0, " ×", value)


def _output(
    ours: Sequence[Result], peers: Sequence[Result], streams: Sequence[int], shape: Shape
) -> Iterator[Goal]:
    for count in streams:
        if count > 1:
            for result in ours:
                metric = f"output_per_s_{count}"
                figure = f"output, {count} streams, {result.subject.format}"
                goal = _over_best(figure, _OUTPUT_OVER, result, peers, metric)
                best = best_peer(peers, result, metric)
                most, theirs = output_bound(result, shape, count), best.median(metric) if best else None
                if most and theirs:
                    goal = replace(goal, note=f"{goal.note}; the bounds allow {most / theirs:.2f} ×")
                yield goal


def _waiting(ours: Sequence[Result]) -> Iterator[Goal]:
    for result in ours:
        name = result.subject.format
        share, stall = result.median("prefix_share"), result.median("stall")
        yield Goal(f"first token of a repeated 1024-token prefix, {name}", 8, "%", share, at_most=True)
        long = result.median("stalling_first_token_s")
        note = "" if long is None else f"its own first token after {long:.1f} s"
        figure = f"gap p99 of 8 streams while a 3000-token prompt arrives, over their p50 before, {name}"
        yield Goal(figure, 2, " ×", stall, at_most=True, note=note)


def _shapes(results: Sequence[Result], variants: Sequence[Variant]) -> Iterator[Goal]:
    """How much slower each is than predicted; 1 is as predicted."""
    by_name = {result.subject.variant: result for result in results}
    base = variants[0]
    for metric in ("prefill", "decode"):
        usual = _slowness(by_name.get(base.name), base, metric)
        for variant in variants[1:]:
            found = by_name.get(variant.name)
            slowness = _slowness(found, variant, metric)
            value = _median([slowness[number] / usual[number] for number in slowness if number in usual])
            note = "its reason is below" if found is not None and found.problem else ""
            figure = f"{metric}, {variant.name}, time over the predicted"
            yield Goal(figure, 1.15, " ×", value, at_most=True, note=note)


def _slowness(result: Result | None, variant: Variant, metric: str) -> dict[int, float]:
    """By round, measured time over what bytes and FLOP alone would take."""
    arithmetic = Arithmetic.of(variant.config)
    work = (
        arithmetic.prefill(variant.prompt)
        if metric == "prefill"
        else arithmetic.decode(variant.prompt + OUTPUT // 2)
    )
    found = {}
    for visit in result.visits if result is not None else []:
        bounds, measured = Bounds.from_values(visit.values), visit.values.get(f"{metric}_s")
        if bounds is not None and measured is not None:
            found[visit.round] = measured / work.seconds(bounds)
    return found


def _threads(results: Sequence[Result]) -> Iterator[Goal]:
    for result in results:
        if result.subject.variant == "1 thread":
            wanted = replace(result.subject, variant="2 threads").name
            two = next((other for other in results if other.subject.name == wanted), None)
            value = None if two is None else ratio(two, result, "prefill_per_s")
            yield Goal(f"prefill 1024, {result.subject.format}, two threads over one", 1.8, " ×", value)


def _quality(results: Sequence[Result]) -> Iterator[Goal]:
    for result in results:
        limit = _SAME.get(result.subject.width)
        if limit is not None:
            anywhere, tokens = result.median("same_anywhere_share"), result.median("tokens")
            note = (
                "" if anywhere is None else f"{tokens:.0f} tokens of answers; {anywhere:.1f}% of all tokens"
            )
            figure = f"next token as float32's, demo model, {result.subject.format}"
            yield Goal(figure, limit, "%", result.median("same_share"), note=note)


def _daemon(ours: Sequence[Result], paired: Sequence[Result]) -> Iterator[Goal]:
    idle = [result for result in paired if result.subject.variant == IDLE]
    for through in (result for result in paired if result.subject.is_ours and result not in idle):
        name = through.subject.format
        alone = next((r for r in paired if not r.subject.is_ours and r.subject.format == name), None)
        share = None if alone is None else ratio(through, alone, "output_per_s")
        percent = None if share is None else 100 * share
        yield Goal(f"output through the daemon, of the engine alone, {name}", 95, "%", percent)
        mine, theirs = through.median("one_token_ms"), alone.median("one_token_ms") if alone else None
        extra = mine - theirs if mine is not None and theirs is not None else None
        yield Goal(f"a one-token request, over the engine alone, {name}", 3, " ms", extra, at_most=True)
    resting = _median([visit.values["worker_mb"] - visit.values["asked_mb"] for visit in _with_memory(idle)])
    for result in ours:
        name = result.subject.format
        yield Goal(f"ready after start, {name}", 5, " s", result.median("cold_start_s"), at_most=True)
        held = [visit.values["worker_mb"] - visit.values["asked_mb"] for visit in _with_memory([result])]
        own = _median(held)
        value = own - resting if own is not None and resting is not None else None
        figure = f"worker's memory beyond packed weights, written KV and an idle worker, {name}"
        yield Goal(figure, 150, " MB", value, at_most=True)


def _with_memory(results: Sequence[Result]) -> list[Visit]:
    return [visit for result in results for visit in result.visits if "worker_mb" in visit.values]


def read_shares(result: Result) -> list[float]:
    """Percent of the read bound of the same visit."""
    return [
        100 * visit.values["decode_per_s"] * result.subject.weight_bytes / (visit.values["read_gb_s"] * 1e9)
        for visit in result.visits
        if {"decode_per_s", "read_gb_s"} <= set(visit.values)
    ]


def fma_shares(result: Result, shape: Shape) -> list[float]:
    """Percent of the float32 FMA peak of the same visit."""
    return [
        100 * visit.values["prefill_per_s"] * token_flop(shape) / (visit.values["fma_gflop_s"] * 1e9)
        for visit in result.visits
        if {"prefill_per_s", "fma_gflop_s"} <= set(visit.values)
    ]


def output_bound(result: Result, shape: Shape, streams: int) -> float | None:
    """Output tokens a second that memory and float32 arithmetic allow; ``None`` for integer arithmetic.

    Prompts at the FMA peak, then steps of a token for each stream in the larger of the times that reading the
    weights and multiplying take.
    """
    read, fma = result.median("read_gb_s"), result.median("fma_gflop_s")
    if not read or not fma or result.subject.width < 16:
        return None
    arithmetic = Arithmetic.of(shape.to_config())
    step_flop = streams * arithmetic.decode(PROMPT + ANSWER // 2).flop
    step_s = max(result.subject.weight_bytes / (read * 1e9), step_flop / (fma * 1e9))
    prompts_s = streams * arithmetic.prefill(PROMPT).flop / (fma * 1e9)
    return streams * ANSWER / (prompts_s + (ANSWER - 1) * step_s)


def token_flop(shape: Shape) -> float:
    """What a token of the long prompt needs."""
    return Arithmetic.of(shape.to_config()).prefill(LONG_PROMPT).flop / LONG_PROMPT


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _llama(peers: Sequence[Result], width: int) -> Result | None:
    return next((r for r in peers if r.subject.engine == "llama.cpp" and r.subject.width == width), None)


def _over(ours: Result, peer: Result | None, metric: str) -> float | None:
    return None if peer is None else ratio(ours, peer, metric)


def _over_best(figure: str, limit: float, ours: Result, peers: Sequence[Result], metric: str) -> Goal:
    best = best_peer(peers, ours, metric)
    note = "" if best is None else best.subject.name
    return Goal(f"{figure}, over the best peer", limit, " ×", _over(ours, best, metric), note=note)
