"""CTranslate2 and OpenVINO GenAI: each converts the model with its own tool and is asked by lines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from benchmarks.conversion import convert
from benchmarks.engines import Setting, no_format
from benchmarks.environments import python_of, version_of
from benchmarks.lines import LineEngine

_OFFLINE = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}


class Converted(LineEngine):
    """``formats``: MindPort's name of a weight format to the peer's, and the bits of a weight."""

    formats: Mapping[str, tuple[str, float]]
    weights: str
    """The converted file with the weights."""

    def __init__(self, setting: Setting, weight_format: str) -> None:
        if weight_format not in self.formats:
            raise no_format(self.engine, weight_format)
        super().__init__(setting, weight_format)
        self.kind, self._bits = self.formats[weight_format]
        self.folder = setting.options.cache / self.engine / f"{setting.shape.name}-{weight_format}"
        self.python = Path()

    @property
    def bits(self) -> float:
        return self._bits

    def source(self) -> Path:
        return self.folder

    def weight_bytes(self) -> float:
        return float((self.folder / self.weights).stat().st_size)

    def prepare(self) -> None:
        options = self.setting.options
        self.python = python_of(self.engine, options.cache, options.install)
        self.detail = self.version()
        name = f"converting for {self.engine}"
        convert(self.setting.model, self.conversion(), self.folder, name, _OFFLINE)

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def conversion(self) -> list[str]: ...

    def tool(self, name: str) -> str:
        return str(self.python.with_name(name))


class CTranslate2(Converted):
    engine = "ctranslate2"
    formats = {"float32": ("float32", 32.0), "int8": ("int8", 8.0)}
    weights = "model.bin"

    def version(self) -> str:
        return f"CTranslate2 {version_of(self.python, 'ctranslate2')}, static batch"

    def conversion(self) -> list[str]:
        command = [self.tool("ct2-transformers-converter"), "--model", str(self.setting.model)]
        return [*command, "--output_dir", str(self.folder), "--quantization", self.kind]

    def command(self) -> list[str]:
        module, threads = "benchmarks.peers.run_ctranslate2", str(len(self.cpus))
        return [str(self.python), "-m", module, str(self.folder), self.kind, threads]


class OpenVino(Converted):
    engine = "openvino"
    formats = {"float32": ("fp32", 32.0), "int8": ("int8", 8.0), "int4": ("int4", 4.25)}
    weights = "openvino_model.bin"

    def version(self) -> str:
        return f"OpenVINO GenAI {version_of(self.python, 'openvino-genai')}, continuous batching, no server"

    def conversion(self) -> list[str]:
        command = [self.tool("optimum-cli"), "export", "openvino", "--model", str(self.setting.model)]
        command += ["--task", "text-generation-with-past", "--weight-format", self.kind]
        if self.kind == "int4":
            command += ["--sym", "--group-size", "64", "--ratio", "1.0"]
        return [*command, str(self.folder)]

    def command(self) -> list[str]:
        module, threads, slots = "benchmarks.peers.run_openvino", str(len(self.cpus)), str(self.setting.slots)
        precision = "f32" if self.bits == 32 else "auto"
        return [str(self.python), "-m", module, str(self.folder), precision, threads, slots]
