"""transformers: no server and no continuous batching, so the prompts of a phase are one static batch."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.engines import Engine, no_format
from benchmarks.environments import python_of, version_of
from benchmarks.load import Answer, EngineError
from benchmarks.processes import Process

_BITS = {"float32": 32.0, "bfloat16": 16.0}


class Transformers(Engine):
    engine = "transformers"
    _python = Path()

    @property
    def bits(self) -> float:
        return _BITS[self.format]

    def weight_bytes(self) -> float:
        return (self.setting.model / "model.safetensors").stat().st_size * self.bits / 32

    def prepare(self) -> None:
        if self.format not in _BITS:
            raise no_format(self.engine, self.format)
        options = self.setting.options
        self._python = python_of(self.engine, options.cache, options.install)
        versions = [f"{name} {version_of(self._python, name)}" for name in ("transformers", "torch")]
        self.detail = ", ".join([*versions, "static batch"])

    def start(self) -> None:
        script = str(Path(peers.__file__).parent / "run_transformers.py")
        options = self.setting.options
        command = [str(self._python), script, str(self.setting.model), self.format, str(len(options.cpus))]
        self._process = Process(command, options.cpus, self.log(".json"))
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self._process.ask(b"")
            undo.pop_all()

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        sent = time.perf_counter()
        moments = [sent + moment for moment in self._ask(prompts, max_tokens)["times"]]
        return [Answer(sent, list(moments), max_tokens) for _ in prompts]

    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        return self.texts(self._ask([prompt], max_tokens)["tokens"][0])

    def _ask(self, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        if self._process is None:
            raise EngineError("it is not started")
        task = {"prompts": prompts, "max_tokens": max_tokens}
        answer: dict[str, Any] = json.loads(self._process.ask(json.dumps(task).encode()))
        made = {len(tokens) for tokens in answer["tokens"]}
        if made != {max_tokens}:
            raise EngineError(f"asked for {max_tokens} tokens, got {sorted(made)}")
        return answer
