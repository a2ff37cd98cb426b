"""MindPort itself: the model packaged by ``builder``, served by ``daemon``."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.engines import Server, Setting
from benchmarks.environments import run, version_of
from benchmarks.processes import free_port

_BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.25, "int4": 4.5}
"""Integers have a 16-bit scale a group: of 64 weights, of 32."""
_PACKAGE = {
    "float32": ["--link"],
    "bfloat16": ["--dtype", "bfloat16"],
    # The embedding, which is the tied head too, is not quantized: it gets the dtype that publishers use.
    "int8": ["--quantize", "int8", "--dtype", "bfloat16"],
    "int4": ["--quantize", "int4", "--dtype", "bfloat16"],
}


class MindPort(Server):
    engine = "mindport"
    health = "/v2/health/ready"

    def __init__(self, setting: Setting, weight_format: str) -> None:
        super().__init__(setting, weight_format)
        self._repository = setting.options.cache / "mindport" / setting.shape.name / weight_format

    @property
    def bits(self) -> float:
        return _BITS[self.format]

    def weight_bytes(self) -> float:
        return float(sum(path.stat().st_size for path in self._repository.glob("*/*/*.safetensors")))

    def prepare(self) -> None:
        self.detail = version_of(Path(sys.executable), "mindport")
        command = [_program("builder"), "package", "--model", str(self.setting.model), "--name", "benchmark"]
        command += ["--out", str(self._repository), "--quiet", *_PACKAGE[self.format]]
        run([*command, "--version", "1", "--replace"], "builder package")

    def command(self) -> list[str]:
        options = self.setting.options
        kv_mb = -(-self.setting.slots * self.setting.slot_tokens * self._kv_bytes() // 2**20)
        command = [_program("daemon"), "start", "--foreground", "--repository", str(self._repository)]
        command += ["--http-port", str(self.port), "--grpc-port", "off", "--metrics-port", "off"]
        command += ["--management-port", str(free_port()), "--threads", str(len(options.cpus))]
        command += ["--state-dir", str(self._repository / ".state"), "--max-running", str(self.setting.slots)]
        return [*command, "--ms-kv-cache-mb", str(kv_mb), "--ms-max-sequences", str(self.setting.slots)]

    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        body = {**self.body(prompt, max_tokens), "logprobs": 0}
        tokens: list[str] = self.complete("/v1/completions", body)["choices"][0]["logprobs"]["tokens"]
        return tokens

    def _kv_bytes(self) -> int:
        """Of one position: keys and values in float32."""
        shape = self.setting.shape
        return shape.layers * 2 * shape.kv_heads * shape.head_dim * 4


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
