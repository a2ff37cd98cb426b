"""Packed weights kept in files, which later loads map in place of packing; the compiled graph beside them.

A file begins with what it must hold, as this load expects it: the key and all sizes. Then come the vectors
behind their SHA-256, and each matrix at a multiple of the page size. The matrices have no checksum: to test
it would take the time that the file saves. A file is written under another name and renamed when the disk has
it, so that it is whole or absent, and is never changed afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from contract.checksums import sha256_of_bytes
from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME
from daemon.backends.ms.graph_cache import GraphCache
from daemon.backends.ms.kernels import Kernels
from daemon.backends.ms.weights import WeightPlan

_MAGIC = b"MindPort packed weights 1\n"
_KEPT = 2
"""Files of a model's name: say, of two versions, or of two types."""
_PACKED, _PART, _GRAPH = ".packed", ".part", ".graph"
_DIGEST_BYTES = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """What a load packs: the matrices in the order they were asked for, and the vectors of the plan."""

    kernels: Kernels
    matrices: Sequence[int]
    plan: WeightPlan

    @property
    def sizes(self) -> list[int]:
        return [self.kernels.matrix_bytes(matrix) for matrix in self.matrices]

    @property
    def vectors(self) -> dict[tuple[int, int], int]:
        """The elements of each vector, by its block and slot there."""
        slots = [slots[role] for tensor, slots in self.plan.entries for role in tensor.roles]
        return {(slot.block, slot.vector): slot.size for slot in slots if slot.matrix is None}

    @property
    def arrangement(self) -> str:
        """Which rows of which tensors go where, without the numbers that handles have in this process."""
        matrices = {matrix: index for index, matrix in enumerate(self.matrices)}
        blocks: dict[int, int] = {}
        lines = []
        for tensor, slots in self.plan.entries:
            lines.append(repr(tensor))
            for slot in (slots[role] for role in tensor.roles):
                matrix = None if slot.matrix is None else matrices[slot.matrix]
                block = blocks.setdefault(slot.block, len(blocks))
                lines.append(repr(dataclasses.replace(slot, matrix=matrix, block=block)))
        return "\n".join(lines)

    def read_vectors(self) -> bytes:
        return b"".join(self.kernels.vector(*place).tobytes() for place in self.vectors)

    def write_vectors(self, data: bytes) -> None:
        values = np.frombuffer(data, np.float32)
        first = 0
        for (block, vector), size in self.vectors.items():
            self.kernels.set_vector(block, vector, values[first : first + size].copy(), size=size)
            first += size


class PackedCache:
    """The file of one model packed one way."""

    def __init__(self, folder: Path, model: str, key: str, packed: PackedWeights) -> None:
        """``model``: what the names of all files of a model begin with."""
        self._folder = folder
        self._model = model
        self._packed = packed
        self.path = folder / f"{model}{key[:24]}{_PACKED}"
        sizes = packed.sizes
        expected = {
            "key": key,
            "page": mmap.PAGESIZE,
            "vectors": list(packed.vectors.values()),
            "matrices": sizes,
        }
        self._front = _MAGIC + json.dumps(expected).encode() + b"\n"
        self._content = len(self._front) + _DIGEST_BYTES
        end = self._matrices = self._content + 4 * sum(packed.vectors.values())
        self._offsets: list[int] = []
        for size in sizes:
            self._offsets.append(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE)
            end = self._offsets[-1] + size
        self._size = end

    @classmethod
    def of_model(
        cls, folder: Path, model_dir: Path, packed: PackedWeights, how: Mapping[str, Any]
    ) -> PackedCache:
        """``how``: choices that change what is packed, besides files and kernels. Raises ``Fault``."""
        try:
            files = [_identity(path) for path in sorted(model_dir.iterdir()) if path.is_file()]
        except OSError as error:
            raise Fault(FaultKind.INVALID_MODEL, f"{model_dir} cannot be read: {error}") from None
        key = {
            "files": files,
            "arrangement": sha256_of_bytes(packed.arrangement.encode()),
            "packing": packed.kernels.packing_version,
            "how": dict(how),
        }
        named = model_dir.resolve().parent
        model = f"{named.name[:40]}-{sha256_of_bytes(os.fsencode(named))[:12]}-"
        return cls(folder, model, sha256_of_bytes(json.dumps(key).encode()), packed)

    def graph(self, how: Sequence[Any]) -> GraphCache:
        """Of the network that computes with them. ``how``: what changes it, besides files and packing."""
        blocks = sorted({block for block, _ in self._packed.vectors})  # the graph names them by number
        key = sha256_of_bytes(json.dumps([self.path.name, blocks, *how]).encode())
        return GraphCache(self.path.with_name(f"{self._model}{key[:24]}{_GRAPH}"))

    def load(self) -> bool:
        """Maps the file, if there is one that fits; a line of the log says why one does not."""
        try:
            with self.path.open("rb") as file:
                reason = self._map(file)
        except FileNotFoundError:
            return False
        except OSError as error:
            reason = str(error)
        if reason:
            _log.warning("the packed weights in %s are not used: %s", self.path, reason)
            return False
        with contextlib.suppress(OSError):
            os.utime(self.path)  # it is the last to be removed
        return True

    def save(self) -> None:
        """Writes the file and removes the model's oldest. What goes wrong is a line of the log only."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_abandoned()
            self._write()
            self._remove_oldest()
        except OSError as error:
            _log.warning("the packed weights cannot be kept in %s: %s", self._folder, error)

    def _map(self, file: IO[bytes]) -> str:
        """Why the file is not this load's; empty once everything is taken from it."""
        size = os.fstat(file.fileno()).st_size
        if size != self._size:
            return f"the file has {size} bytes, expected {self._size}"
        with mmap.mmap(file.fileno(), self._matrices, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            if view[: len(self._front)] != self._front:
                return "its beginning is damaged, or of something else"
            digest, vectors = view[len(self._front) : self._content], view[self._content :]
        if hashlib.sha256(vectors).digest() != digest:
            return "its vectors are damaged"
        for matrix, offset in zip(self._packed.matrices, self._offsets, strict=True):
            self._packed.kernels.map_matrix(matrix, file.fileno(), offset)
        self._packed.write_vectors(vectors)
        return ""

    def _write(self) -> None:
        descriptor, name = tempfile.mkstemp(_PART, self._model, self._folder)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: somebody is at work here
                vectors = self._packed.read_vectors()
                file.write(self._front + hashlib.sha256(vectors).digest() + vectors)
                for matrix, offset in zip(self._packed.matrices, self._offsets, strict=True):
                    file.seek(offset)
                    file.write(self._packed.kernels.matrix_data(matrix))
                file.flush()
                os.fsync(file.fileno())
                part.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def _remove_abandoned(self) -> None:
        """What writers that were killed have left."""
        for path in self._others(_PART):
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _remove_oldest(self) -> None:
        for suffix in (_PACKED, _GRAPH):
            found = [(path.stat().st_mtime, path) for path in self._others(suffix)]
            for _, path in sorted(found, reverse=True)[_KEPT - (suffix == _PACKED) :]:
                path.unlink(missing_ok=True)

    def _others(self, suffix: str) -> Iterator[Path]:
        for path in self._folder.iterdir():
            if path.name.startswith(self._model) and path.suffix == suffix and path != self.path:
                yield path


def _identity(path: Path) -> list[Any]:
    """A manifest may not know the content of linked weights: their time of change counts."""
    if path.name in (MANIFEST_NAME, "config.json") or path.suffix == ".py":
        return [path.name, sha256_of_bytes(path.read_bytes())]
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]
