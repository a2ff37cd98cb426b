"""Which files a conversion writes, and the bytes of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from builder.checkpoints.layouts.families import BMTRAIN, MCORE, META, R1
from builder.checkpoints.views import View
from builder.checkpoints.writers.ckpt_file import ckpt_bytes
from builder.checkpoints.writers.safetensors_file import file_order, header_of, safetensors_bytes
from builder.checkpoints.writers.streams import NamedView, Stream
from builder.checkpoints.writers.torch_file import torch_bytes
from builder.conversion.order import ConvertOrder, Format
from builder.conversion.plan import Conversion
from contract.manifest import canonical_json

_STEMS: Mapping[Format, str] = {"safetensors": "model", "bin": "pytorch_model", "ckpt": "checkpoint_0"}
_ENTRY_BYTES = 512
"""What a tensor's name, shape and place may take in a file."""


@dataclass(frozen=True)
class TargetFile:
    """One file to be written."""

    name: str
    """Relative to the target, with slashes."""
    format: Format
    tensors: tuple[NamedView, ...]
    metadata: Mapping[str, str]

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.view.bytes for tensor in self.tensors)

    @property
    def most_bytes(self) -> int:
        """The size of the file, or a little more."""
        if self.format == "safetensors":
            return header_of(file_order(self.tensors), dict(self.metadata)).size
        return self.tensor_bytes + _ENTRY_BYTES * (len(self.tensors) + 8)

    def stream(self, stream: Stream) -> Iterator[bytes | memoryview]:
        """The bytes of the file from front to back."""
        if self.format == "safetensors":
            return safetensors_bytes(self.tensors, stream, dict(self.metadata))
        if self.format == "ckpt":
            return ckpt_bytes(self.tensors, stream)
        return torch_bytes(self.tensors, stream)

    def outline(self) -> list[str]:
        """Everything about the file that its options decide, for a fingerprint."""
        tensors = [f"{tensor.name} {tensor.view.dtype} {tensor.view.shape}" for tensor in self.tensors]
        return [self.name, self.format, *tensors]


@dataclass(frozen=True)
class TargetFiles:
    weights: tuple[TargetFile, ...]
    small: Mapping[str, bytes]
    """Other files by name, complete."""

    def fingerprint(self, facts: Mapping[str, object]) -> str:
        """Of the result and of these facts."""
        outline = [file.outline() for file in self.weights]
        return hashlib.sha256(canonical_json({"files": outline, **facts})).hexdigest()


def target_files(conversion: Conversion, order: ConvertOrder) -> TargetFiles:
    """Lay the tensors out in files."""
    written = order.written_format()
    metadata = {"format": "ms" if order.ranked or order.to in (R1, MCORE) else "pt"}
    tables = [_named(tensors) for tensors in conversion.ranks]
    if order.single_file:
        return TargetFiles((TargetFile(order.target.name, written, tables[0], metadata),), {})
    if order.to == META:
        names = [f"consolidated.{rank:02}.pth" for rank in range(len(tables))]
        return TargetFiles(_files(names, tables, written, metadata), {})
    if order.ranked:
        names = [f"rank_{rank}/checkpoint_{rank}.{written}" for rank in range(len(tables))]
        return TargetFiles(_files(names, tables, written, metadata), {})
    if order.to == BMTRAIN:
        return TargetFiles(_files(["model.pt"], tables, written, metadata), {})
    stem = _STEMS[written]
    shards = [tables[0]] if written == "ckpt" else _shards(tables[0], order.max_shard_bytes)
    if len(shards) == 1:
        return TargetFiles(_files([f"{stem}.{written}"], shards, written, metadata), {})
    names = [f"{stem}-{number:05}-of-{len(shards):05}.{written}" for number in range(1, len(shards) + 1)]
    files = _files(names, shards, written, metadata)
    return TargetFiles(files, {f"{stem}.{written}.index.json": _index(files)})


def _named(tensors: Mapping[str, View]) -> tuple[NamedView, ...]:
    return tuple(NamedView(name, view) for name, view in tensors.items())


def _files(
    names: Sequence[str],
    tables: Sequence[tuple[NamedView, ...]],
    written: Format,
    metadata: Mapping[str, str],
) -> tuple[TargetFile, ...]:
    return tuple(
        TargetFile(name, written, tensors, metadata) for name, tensors in zip(names, tables, strict=True)
    )


def _shards(tensors: tuple[NamedView, ...], most_bytes: int) -> list[tuple[NamedView, ...]]:
    """Tensors in order, as many in each shard as fit."""
    shards: list[list[NamedView]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.view.bytes > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.view.bytes
    return [tuple(shard) for shard in shards]


def _index(files: Sequence[TargetFile]) -> bytes:
    places = {tensor.name: file.name for file in files for tensor in file.tensors}
    total = sum(file.tensor_bytes for file in files)
    return canonical_json({"metadata": {"total_size": total}, "weight_map": places})
