"""What the user asks of a conversion."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.checkpoints.layouts.families import BMTRAIN, HF, MCORE, META, R1
from contract.faults import Fault, FaultKind

Format = Literal["safetensors", "ckpt", "bin"]
FORMS = (HF, MCORE, R1, META, BMTRAIN)
FORMATS: tuple[Format, ...] = ("safetensors", "ckpt", "bin")
_DEFAULT_FORMATS: dict[str, Format] = {R1: "ckpt", META: "bin", BMTRAIN: "bin"}
_SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors",
    ".ckpt": "ckpt",
    ".bin": "bin",
    ".pth": "bin",
    ".pt": "bin",
}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True)
class ConvertOrder:
    source: Path
    target: Path
    """A folder, or a file when it has the suffix of one."""
    to: str | None = None
    """The names and packing wanted; ``None`` keeps them."""
    model: str | None = None
    """Recipe, recipe.yaml or HuggingFace folder: the family and the numbers of heads."""
    format: Format | None = None
    dtype: str | None = None
    qkv_concat: bool | None = None
    gmm: bool = False
    """Stacked experts as the grouped product of mindformers wants them."""
    max_shard_bytes: int = 5 * 10**9
    ranks: int | None = None
    vocab_emb_dp: bool = False
    """Every rank gets the whole embedding."""
    strategy: Path | None = None
    target_strategy: Path | None = None
    allow_nonfinite: bool = False
    discard: bool = False
    dry_run: bool = False
    replace: bool = False

    @property
    def single_file(self) -> bool:
        return self.target.suffix in _SUFFIXES

    @property
    def ranked(self) -> bool:
        return self.ranks is not None or self.target_strategy is not None

    def keeps_names(self, source_ranks: int) -> bool:
        """Whether tensors go over by their own names, whatever they are to a model."""
        return self.to is None and self.ranks is None and (source_ranks == 1 or self.strategy is not None)

    def written_format(self) -> Format:
        """The file format of the result. Raises ``Fault`` when two are asked for."""
        stated = _SUFFIXES.get(self.target.suffix)
        if self.format is not None and stated is not None and stated != self.format:
            message = f"{self.target.name} has the suffix of another format than --format {self.format}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "leave out --format, or change the suffix")
        default = (
            "ckpt" if self.ranked and self.to != META else _DEFAULT_FORMATS.get(self.to or HF, "safetensors")
        )
        return self.format or stated or default

    def check(self) -> None:
        """Raises ``Fault`` for options that contradict one another."""
        self.written_format()
        if self.ranked and self.single_file:
            message = f"{self.target} is one file, and ranks need a folder"
            raise Fault(FaultKind.INVALID_REQUEST, message, "name a folder as the target")
        if self.ranks is not None and self.target_strategy is not None:
            message = "--ranks and --target-strategy both say how to share the weights"
            raise Fault(FaultKind.INVALID_REQUEST, message, "leave out one of them")
        if (self.qkv_concat is not None or self.gmm) and self.to != R1:
            message = "--qkv-concat, --kv-concat and --gmm are for the names of mindformers 1.x"
            raise Fault(FaultKind.INVALID_REQUEST, message, f"say --to {R1}")


def parse_size(text: str) -> int:
    """``5GB``, ``512MiB`` or a number of bytes. Raises ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[match[2]])
