"""Engines without a server: a program in the engine's own environment, asked by one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from benchmarks.engines import Engine
from benchmarks.load import Answer, EngineError
from benchmarks.processes import Process

ROOT = Path(__file__).resolve().parent.parent


class LineEngine(Engine):
    """Answers ``{"prompts": [[ids]], "max_tokens": n}`` by tokens and their times, for each prompt."""

    @abstractmethod
    def command(self) -> list[str]:
        """An interpreter and its arguments; it runs with our modules in reach."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(ROOT)}

    def start(self) -> None:
        self._process = Process(self.command(), self.cpus, self.log(".json"), self.environment())
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.ready = self._read(b"")
            undo.pop_all()

    @property
    def cpus(self) -> tuple[int, ...]:
        return self.setting.options.cpus

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        sent = time.perf_counter()
        answer = self.ask({"prompts": prompts, "max_tokens": max_tokens})
        made = {len(tokens) for tokens in answer["tokens"]}
        if made != {max_tokens}:
            raise EngineError(f"asked for {max_tokens} tokens, got {sorted(made)}")
        return [Answer(sent, [sent + moment for moment in times], max_tokens) for times in answer["times"]]

    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        return self.texts(self.ask({"prompts": [prompt], "max_tokens": max_tokens})["tokens"][0])

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        return self._read(json.dumps(task).encode())

    def _read(self, line: bytes) -> dict[str, Any]:
        if self._process is None:
            raise EngineError("it is not started")
        said = self._process.ask(line)
        try:
            answer: dict[str, Any] = json.loads(said)
        except ValueError:
            raise EngineError(f"it said {said[:200]!r}") from None
        if "error" in answer:
            raise EngineError(str(answer["error"]))
        return answer
