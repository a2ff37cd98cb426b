"""MindPort itself: the model packaged by ``builder``, served by ``daemon``, or its engine alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.engines import Engine, Server, Setting
from benchmarks.environments import run, version_of
from benchmarks.lines import LineEngine
from benchmarks.load import EngineError, get
from benchmarks.processes import free_port, memory_bytes
from benchmarks.subject import OURS
from daemon.backends.ms.kernels import PANEL_ROWS
from daemon.backends.ms.weights import estimate

_BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.25, "int4": 4.25}
"""Integers have a 16-bit scale for each group of 64."""
_PACKAGE = {
    "float32": ["--link"],
    "bfloat16": ["--dtype", "bfloat16"],
    # A package keeps the embedding, which is the tied head too, in the dtype that publishers use; the engine
    # holds it in 8 bits.
    "int8": ["--quantize", "int8", "--dtype", "bfloat16"],
    "int4": ["--quantize", "int4", "--dtype", "bfloat16"],
}
_KV_TOKENS = 17_000
"""Enough for eight long answers beside a prompt of 3000 tokens."""


class Packaged(Engine):
    """What both forms share: the package."""

    @property
    def bits(self) -> float:
        return _BITS[self.format]

    @property
    def repository(self) -> Path:
        return repository_of(self.setting, self.setting.model.name, self.format)

    def weight_bytes(self) -> float:
        """As the engine holds them: less than the files where it packs the head in fewer bits."""
        return float(estimate(self.directory).weight_bytes)

    def source(self) -> Path:
        return self.directory

    @property
    def directory(self) -> Path:
        """Raises ``EngineError`` when the package is missing."""
        found = next(self.repository.glob("*/1"), None)
        if found is None:
            raise EngineError(f"{self.repository} holds no package")
        return found

    def prepare(self) -> None:
        self.detail = version_of(Path(sys.executable), "mindport")
        package(self.setting.model, self.repository, self.format)

    def environment(self) -> dict[str, str]:
        return self.setting.environment()

    @property
    def kv_bytes(self) -> int:
        """Of one position, in the type that the engine keeps keys and values in."""
        return estimate(self.directory).kv_bytes_per_block // PANEL_ROWS

    @property
    def kv_cache_bytes(self) -> int:
        return max(_KV_TOKENS, self.setting.slots * self.setting.slot_tokens) * self.kv_bytes


class MindPort(Packaged, Server):
    engine = OURS
    health = "/v2/health/ready"
    has_prefix_cache = True
    has_footprint = True
    is_stalled = True

    def __init__(self, setting: Setting, weight_format: str) -> None:
        super().__init__(setting, weight_format)
        self._management_port = 0

    def command(self) -> list[str]:
        slots, self._management_port = str(self.setting.slots + 1), free_port()
        kv_mb = -(-self.kv_cache_bytes // 2**20)
        command = [program("daemon"), "start", "--foreground", "--repository", str(self.repository)]
        command += ["--http-port", str(self.port), "--grpc-port", "off", "--metrics-port", "off"]
        command += ["--management-port", str(self._management_port), "--threads"]
        command += [str(len(self.setting.options.cpus)), "--state-dir", str(self.repository / ".state")]
        return [*command, "--max-running", slots, "--ms-kv-cache-mb", str(kv_mb), "--ms-max-sequences", slots]

    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        body = {**self.body(prompt, max_tokens), "logprobs": 0}
        tokens: list[str] = self.complete("/v1/completions", body)["choices"][0]["logprobs"]["tokens"]
        return tokens

    def footprint(self, positions: int) -> dict[str, float]:
        """Memory of the worker, and the part of it that packed weights and the KV written so far take."""
        models = get(self._management_port, "/status")["models"]
        ready = next((model for model in models if model.get("pid")), None)
        if ready is None:
            raise EngineError("the daemon lists no worker")
        return {
            "worker_peak_mb": memory_bytes(ready["pid"]) / 1e6,
            "worker_mb": memory_bytes(ready["pid"], "VmRSS") / 1e6,
            "asked_mb": (ready["details"]["weight_bytes"] + positions * self.kv_bytes) / 1e6,
        }


class EngineAlone(Packaged, LineEngine):
    """The engine as its worker loads it, without daemon, HTTP or another process."""

    engine = "engine alone"

    def __init__(
        self,
        setting: Setting,
        weight_format: str,
        *,
        cpus: tuple[int, ...] | None = None,
        options: Mapping[str, Any] | None = None,
        variant: str = "",
    ) -> None:
        super().__init__(setting, weight_format)
        self._cpus = cpus or setting.options.cpus
        self._options = options
        self.variant = variant or f"{len(self._cpus)} thread{'s' if len(self._cpus) > 1 else ''}"

    @property
    def cpus(self) -> tuple[int, ...]:
        return self._cpus

    def environment(self) -> dict[str, str]:
        return {**self.setting.environment(), "PYTHONPATH": LineEngine.environment(self)["PYTHONPATH"]}

    def command(self) -> list[str]:
        options = self._options or {
            "max_sequences": self.setting.slots + 1,
            "kv_cache_bytes": self.kv_cache_bytes,
        }
        words = [str(self.directory), str(len(self._cpus)), json.dumps(options)]
        return [sys.executable, "-m", "benchmarks.run_engine", *words]


def repository_of(setting: Setting, model: str, weight_format: str) -> Path:
    return setting.options.cache / OURS / model / weight_format


def package(model: Path, repository: Path, weight_format: str) -> None:
    """Raises ``EngineError``."""
    command = [program("builder"), "package", "--model", str(model), "--name", "benchmark"]
    command += ["--out", str(repository), "--quiet", *_PACKAGE[weight_format]]
    run([*command, "--version", "1", "--replace"], "builder package")


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
