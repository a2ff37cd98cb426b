"""The loop of every program that is asked by lines; it knows no engine."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int, "Clock"], list[list[int]]]


class Clock:
    """Takes the time of each token."""

    def __init__(self, prompts: int) -> None:
        self._begin = time.perf_counter()
        self.times: list[list[float]] = [[] for _ in range(prompts)]

    def tick(self, prompt: int, tokens: int = 1) -> None:
        self.times[prompt] += [time.perf_counter() - self._begin] * tokens

    def tick_all(self) -> None:
        for prompt in range(len(self.times)):
            self.tick(prompt)


def own_output() -> Any:
    """Standard output for answers alone: what libraries print goes to standard error."""
    mine = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return mine


def serve(out: Any, generate: Generate) -> None:
    """Answer until standard input ends."""
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        prompts, most = task["prompts"], task["max_tokens"]
        clock = Clock(len(prompts))
        tokens = generate(prompts, most, clock)
        print(json.dumps({"tokens": tokens, "times": clock.times}), file=out, flush=True)
