"""The bytes of a weight file from front to back: of one on disk, or of one that is put together meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType

from builder.checkpoints.output import WINDOW_BYTES
from builder.checkpoints.weight_files import WeightFile
from builder.checkpoints.writers.safetensors_file import safetensors_bytes
from builder.checkpoints.writers.streams import Stream
from contract.checksums import drop_pages
from contract.faults import Fault, FaultKind

_UNCHECKED = Stream(allow_nonfinite=True)
"""Who reads the content checks it, whatever it is made of."""


class Content:
    """Gives the bytes of a weight file in order, and lets go of what lies behind."""

    def __init__(self, file: WeightFile) -> None:
        self._name, self._position, self._dropped = file.name, 0, 0
        self._descriptor: int | None = None
        self._chunks: Iterator[bytes | memoryview] = iter(())
        self._waiting = memoryview(b"")
        if file.assembly is None:
            self._descriptor = os.open(file.path.resolve(), os.O_RDONLY | os.O_CLOEXEC)
        else:
            self._chunks = safetensors_bytes(file.assembly, _UNCHECKED, file.header.metadata)

    def __enter__(self) -> Content:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, count: int) -> bytes:
        """Exactly so many of the next bytes. Raises ``Fault`` when there are fewer."""
        parts, missing = [], count
        while missing:
            part = self.some(missing)
            if not part:
                message = f"the weight file {self._name} became shorter while it was read"
                raise Fault(FaultKind.INVALID_MODEL, message, "fetch it again")
            parts.append(part)
            missing -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def some(self, most: int) -> bytes | memoryview:
        """Some of the next bytes; none at the end."""
        if self._descriptor is None:
            if not self._waiting:
                self._waiting = memoryview(next(self._chunks, b""))
            part, self._waiting = self._waiting[:most], self._waiting[most:]
            return part
        found = os.read(self._descriptor, most)
        self._position += len(found)
        if self._position - self._dropped >= WINDOW_BYTES:
            drop_pages(self._descriptor, self._dropped, self._position - self._dropped)
            self._dropped = self._position
        return found
