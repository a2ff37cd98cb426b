"""Brings a weight file to its place: by hard link, reflink, copy or conversion. Hashes while it copies.

A link or a reflink takes no time because no byte is read. Its SHA-256 is then taken from the digest cache
when the source is unchanged since it was last hashed, and otherwise left open: the manifest says ``null``,
the builder says "not hashed", and ``builder verify --hash`` fills it in. A hard link shares the publisher's
file: whoever writes into that file changes the model. Copies are always hashed, on a thread of their own,
and pages are dropped behind both ends, so memory stays flat whatever the size.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from builder.checkpoints.content import Content
from builder.checkpoints.digest_cache import DigestCache
from builder.checkpoints.dtypes import convert_values
from builder.checkpoints.output import CancelledError, Output
from builder.checkpoints.rewrite import rewrite
from builder.checkpoints.safetensors_header import DTYPE_BYTES, TensorEntry, write_header
from builder.checkpoints.weight_files import WeightFile
from builder.checkpoints.writers.streams import check_finite
from builder.plan import PlannedWeights
from contract.faults import Fault, FaultKind
from contract.manifest import FileEntry

_FICLONE = 0x40049409
_CHUNK_BYTES = 8 * 1024 * 1024
_NO_REFLINK = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)


@dataclass(frozen=True)
class Transferred:
    """What is now in the directory, and what the publisher's file was."""

    written: FileEntry
    source: FileEntry
    errors: Mapping[str, float] = field(default_factory=dict)
    """Of quantized layers: root of squared error over squared weights."""


@dataclass(frozen=True)
class Carrier:
    """How files are brought over: whom to tell, and when to stop."""

    cache: DigestCache
    on_bytes: Callable[[int], None]
    cancelled: threading.Event
    allow_nonfinite: bool = False
    """Bring infinite and NaN weights over as they are."""

    def transfer(self, weights: PlannedWeights, folder: Path) -> Transferred:
        """Bring one file into ``folder``. Raises ``Fault``, ``OSError`` or ``CancelledError``."""
        source = weights.source.path.resolve()
        target = folder / weights.name
        if weights.method == "rewrite":
            return rewrite(weights, folder, self)
        if weights.method == "convert":
            return self._convert(weights, target)
        if weights.method == "link":
            _hard_link(source, target)
        elif weights.source.assembly is not None or not _reflink(source, target):
            entry = self._copy(weights.source, target)
            return Transferred(entry, entry)
        self.on_bytes(weights.size)
        entry = FileEntry(weights.size, self.cache.get(source))
        return Transferred(entry, entry)

    def _copy(self, source: WeightFile, target: Path) -> FileEntry:
        with Content(source) as content, Output(target) as output:
            output.write(content.read(source.header.data_start))
            for tensor in source.header.tensors:
                for length in _pieces(tensor):
                    self.check()
                    chunk = content.read(length)
                    self.inspect(chunk, tensor, source)
                    output.write(chunk)
                    self.on_bytes(length)
            entry = output.finish()
        if entry.sha256 is not None:
            self.remember(source, entry.sha256)
            self.cache.put(target, entry.sha256)
        return entry

    def _convert(self, weights: PlannedWeights, target: Path) -> Transferred:
        before, after = weights.source.header, weights.header
        original = hashlib.sha256()
        with Content(weights.source) as content, Output(target) as output:
            original.update(content.read(before.data_start))
            output.write(write_header(list(after.tensors), after.metadata))
            for old, new in zip(before.tensors, after.tensors, strict=True):
                for length in _pieces(old):
                    self.check()
                    raw = content.read(length)
                    original.update(raw)
                    converted = convert_values(raw, old, new)
                    self.inspect(converted, new, weights.source)
                    output.write(converted)
                    self.on_bytes(len(converted))
            entry = output.finish()
        digest = original.hexdigest()
        self.remember(weights.source, digest)
        return Transferred(entry, FileEntry(before.size, digest))

    def remember(self, source: WeightFile, digest: str) -> None:
        """Note the digest of a file that lies on disk as it is."""
        if source.assembly is None:
            self.cache.put(source.path.resolve(), digest)

    def check(self) -> None:
        """Raises ``CancelledError`` when the work was called off."""
        if self.cancelled.is_set():
            raise CancelledError

    def inspect(self, data: bytes, tensor: TensorEntry, source: WeightFile) -> None:
        """Raises ``Fault`` for elements that are no weights."""
        if not self.allow_nonfinite:
            check_finite(data, tensor.name, tensor.dtype, str(source.path))


def _pieces(tensor: TensorEntry) -> Iterator[int]:
    """Lengths of whole elements that make up a tensor's bytes."""
    step = _CHUNK_BYTES // DTYPE_BYTES[tensor.dtype] * DTYPE_BYTES[tensor.dtype]
    for start in range(tensor.start, tensor.end, step):
        yield min(step, tensor.end - start)


def _hard_link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        reasons = {
            errno.EXDEV: "is on another file system",
            errno.EPERM: "may not be linked by this user, or its file system has no hard links",
            errno.EMLINK: "has too many links",
        }
        if error.errno not in reasons:
            raise
        message = f"{source} cannot be linked into {target.parent.parent}: it {reasons[error.errno]}"
        raise Fault(FaultKind.UNSUPPORTED, message, "leave out --link to copy it") from None


def _reflink(source: Path, target: Path) -> bool:
    """Share the source's blocks where the file system can; ``False`` where it cannot."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
        else:
            os.fsync(writer.fileno())
            return True
    target.unlink()
    return False
