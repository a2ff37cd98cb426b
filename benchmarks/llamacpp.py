"""llama.cpp's server: the xllamacpp wheel, or a llama-server that the user built."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import peers
from benchmarks.conversion import convert
from benchmarks.engines import Server, Setting
from benchmarks.environments import python_of, run, version_of
from benchmarks.load import EngineError

_FORMATS = {
    "float32": ("f32", 32.0),
    "bfloat16": ("bf16", 16.0),
    "int8": ("q8_0", 8.5),
    "int4": ("q4_0", 4.5),
}
_SCRIPTS = Path(peers.__file__).parent


class LlamaCpp(Server):
    engine = "llama.cpp"
    health = "/health"

    def __init__(self, setting: Setting, weight_format: str) -> None:
        kind, self._bits = _FORMATS[weight_format]
        super().__init__(setting, kind)
        self._gguf = setting.options.cache / "gguf" / f"{setting.shape.name}-{kind}.gguf"
        self._python = Path()
        # The wheel knows AVX2 only; a build of one's own may have been made for more.
        self._server = setting.options.llama_server if setting.options.isa is None else None

    @property
    def bits(self) -> float:
        return self._bits

    def source(self) -> Path:
        return self._gguf

    def weight_bytes(self) -> float:
        return float(self._gguf.stat().st_size)

    def prepare(self) -> None:
        options = self.setting.options
        self._python = python_of(self.engine, options.cache, options.install)
        own = self._server
        if own is not None and not own.is_file():
            raise EngineError(f"--llama-server {own} does not exist")
        self.detail = _own_build(own) if own else _wheel(self._python)
        command = [str(self._python), str(_SCRIPTS / "write_gguf.py"), str(self.setting.model)]
        convert(self.setting.model, [*command, str(self._gguf), self.format], self._gguf, "writing GGUF")

    def command(self) -> list[str]:
        options, slots = self.setting.options, self.setting.slots
        threads, context = str(len(options.cpus)), str(slots * self.setting.slot_tokens)
        if self._server is None:
            script = str(_SCRIPTS / "serve_llamacpp.py")
            return [str(self._python), script, str(self._gguf), str(self.port), threads, str(slots), context]
        command = [str(self._server), "-m", str(self._gguf), "--port", str(self.port), "-t", threads]
        command += ["-np", str(slots), "-c", context, "--no-kv-unified", "--cache-ram", "0", "--fit", "off"]
        return [*command, "--no-webui"]

    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        body = {**self.body(prompt, max_tokens), "n_predict": max_tokens, "return_tokens": True}
        tokens: list[int] = self.complete("/completion", body)["tokens"]
        return self.texts(tokens)


def _wheel(python: Path) -> str:
    """Its version, and the instruction sets that it was built for."""
    info = run([str(python), "-c", "import xllamacpp as x; print(x.get_system_info())"], "asking the wheel")
    sets = [word.split("=")[0].strip() for word in info.replace("CPU :", "").split("|") if "= 1" in word]
    return f"xllamacpp {version_of(python, 'xllamacpp')} wheel, built with {' '.join(sets)}"


def _own_build(program: Path) -> str:
    """What the server says of itself, on standard error."""
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    said = [
        line.strip()
        for line in (done.stdout + done.stderr).splitlines()
        if "version" in line or "built" in line
    ]
    return ", ".join(["own build", *said])
