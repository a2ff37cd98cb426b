"""transformers: no server and no continuous batching, so the prompts of a phase are one static batch."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engines import no_format
from benchmarks.environments import python_of, version_of
from benchmarks.lines import LineEngine

_BITS = {"float32": 32.0}
"""bfloat16 prefills at a tenth of the speed on processors without matrix units for it."""


class Transformers(LineEngine):
    engine = "transformers"
    _python = Path()

    @property
    def bits(self) -> float:
        return _BITS[self.format]

    def source(self) -> Path:
        return self.setting.model

    def weight_bytes(self) -> float:
        return (self.setting.model / "model.safetensors").stat().st_size * self.bits / 32

    def prepare(self) -> None:
        if self.format not in _BITS:
            raise no_format(self.engine, self.format)
        options = self.setting.options
        self._python = python_of(self.engine, options.cache, options.install)
        versions = [f"{name} {version_of(self._python, name)}" for name in ("transformers", "torch")]
        self.detail = ", ".join([*versions, "static batch"])

    def command(self) -> list[str]:
        threads = str(len(self.cpus))
        module = "benchmarks.peers.run_transformers"
        return [str(self._python), "-m", module, str(self.setting.model), self.format, threads]
