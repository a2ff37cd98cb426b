"""What is measured: MindPort and its peers behind one face."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.load import Answer, EngineError, is_ready, post, stream_all
from benchmarks.options import Options
from benchmarks.processes import START_S, Process, free_port
from benchmarks.subject import Subject
from benchmarks.synthetic import Shape


@dataclass(frozen=True, slots=True)
class Setting:
    """What all engines share in one run."""

    options: Options
    shape: Shape
    model: Path
    """The HuggingFace folder."""

    @property
    def slots(self) -> int:
        return max(*self.options.streams, 1)

    @property
    def slot_tokens(self) -> int:
        """Positions that each stream may need."""
        return 1152

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.model / "tokenizer.json"))

    def environment(self) -> dict[str, str]:
        """Variables that hold engines to the instructions that were asked for."""
        return dict(_HELD[self.options.isa]) if self.options.isa else {}


_HELD: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "MINDPORT_KERNELS_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    }
}


class Engine(ABC):
    """One engine with one weight format. Every method raises ``EngineError``."""

    has_prefix_cache = False
    """Whether it is measured how much faster a prompt that came before is answered."""
    has_footprint = False
    """Whether it can say how its memory is used."""
    is_stalled = False
    """Whether it is measured how a long prompt delays running streams."""

    def __init__(self, setting: Setting, weight_format: str) -> None:
        self.setting = setting
        self.format = weight_format
        self.detail = ""
        """Version and build, known after ``prepare``."""
        self.variant = ""
        """What sets it apart from the same engine with the same format."""
        self._process: Process | None = None

    @property
    @abstractmethod
    def engine(self) -> str:
        """The engine's name."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """Of most weights, scales included."""

    @property
    def name(self) -> str:
        return self.subject_of(0.0).name

    @property
    def subject(self) -> Subject:
        """After ``prepare``."""
        return self.subject_of(self.weight_bytes())

    def subject_of(self, weight_bytes: float) -> Subject:
        return Subject(self.engine, self.format, self.bits, weight_bytes, self.detail, self.variant)

    @abstractmethod
    def weight_bytes(self) -> float:
        """What one decoded token reads: the weight file, with every format's scales and exceptions."""

    @abstractmethod
    def source(self) -> Path:
        """The file or folder that it loads."""

    @abstractmethod
    def prepare(self) -> None:
        """Install and convert, once."""

    @abstractmethod
    def start(self) -> None:
        """Returns when it answers."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        """All prompts at once, greedy, with the end token ignored."""

    @abstractmethod
    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        """The tokens of an answer, as text."""

    def footprint(self, positions: int) -> dict[str, float]:
        """Memory of the process that computes, after so many positions of the KV cache were written."""
        raise EngineError(f"{self.engine}: which process computes is not known")

    def environment(self) -> dict[str, str]:
        """Variables of its processes. A peer does not see our modules."""
        return {"PYTHONPATH": "", **self.setting.environment()}

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def peak_bytes(self) -> int:
        return self._process.peak_bytes() if self._process is not None else 0

    def cpu_seconds(self) -> float:
        return self._process.cpu_seconds() if self._process is not None else 0.0

    def log(self, suffix: str = ".log") -> Path:
        name = self.name.replace(", ", "-").replace(" ", "-").replace("/", "-").replace(":", "-")
        return self.setting.options.cache / "logs" / (name + suffix)

    def texts(self, ids: list[int]) -> list[str]:
        tokenizer = self.setting.tokenizer()
        return [tokenizer.decode([token], skip_special_tokens=False) for token in ids]


class Server(Engine):
    """An engine with an OpenAI endpoint of its own."""

    health: str
    """A path that is answered with 200 when the model is ready."""
    start_limit_s = START_S

    def __init__(self, setting: Setting, weight_format: str) -> None:
        super().__init__(setting, weight_format)
        self.port = 0

    @abstractmethod
    def command(self) -> list[str]:
        """The server, listening at ``self.port``."""

    def start(self) -> None:
        self.port = free_port()
        self._process = Process(
            self.command(), self.setting.options.cpus, self.log(), self.environment(), self.start_limit_s
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self._process.wait_until(lambda: is_ready(self.port, self.health))
            undo.pop_all()

    def body(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        return {
            "model": "benchmark",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        return stream_all(self.port, [self.body(prompt, max_tokens) for prompt in prompts])

    def complete(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return post(self.port, path, body)


def no_format(engine: str, weight_format: str) -> EngineError:
    return EngineError(f"{engine} is not measured with {weight_format}")
