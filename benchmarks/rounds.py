"""Rounds over the engines, A B C A B C: all of them, then those that decide a goal while time is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.engines import Engine
from benchmarks.subject import Result, best_peer, results_of
from benchmarks.visits import Visitor

_ALWAYS = "llama.cpp"
"""It has goals of its own."""


def rounds(visitor: Visitor, engines: Sequence[Engine], number: int, left_s: float) -> Iterator[None]:
    """One round; yields after each visit.

    From the second round on, a width whose visits would not end in time is left out.
    """
    results = results_of(visitor.diary.visits, "peers")
    chosen = {engine.name for engine in engines} if number == 0 else contenders(results)
    seconds = {result.subject.name: result.median("visit_s") or 0.0 for result in results}
    for width in dict.fromkeys(engine.subject.width for engine in engines):
        turn = [engine for engine in engines if engine.subject.width == width and engine.name in chosen]
        needed = sum(seconds.get(engine.name, 0.0) for engine in turn)
        if number > 0 and needed > left_s:
            continue
        left_s -= needed
        for engine in turn:
            visitor.round(engine, number)
            yield


def contenders(results: Sequence[Result]) -> set[str]:
    """MindPort, llama.cpp, and of each width the fastest peer in each figure; none that failed."""
    chosen = {result.subject.name for result in results if result.subject.engine == _ALWAYS}
    for ours in (result for result in results if result.subject.is_ours):
        chosen.add(ours.subject.name)
        metrics = {metric for visit in ours.visits for metric in visit.values if "_per_s" in metric}
        for metric in metrics:
            best = best_peer(results, ours, metric)
            if best is not None:
                chosen.add(best.subject.name)
    failed = {result.subject.name for result in results if result.problem}
    return chosen - failed
