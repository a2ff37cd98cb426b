"""SHA-256 of files and bytes, streamed: memory stays flat and the page cache is left as it was found."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_BUFFER_BYTES = 4 * 1024 * 1024
_DROP_BYTES = 256 * 1024 * 1024


def sha256_of_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hexadecimal SHA-256 of a file's content.

    ``on_bytes`` is told how many bytes each step read. Pages of large files are dropped behind the reader, so
    that checking a model does not push a serving one out of memory. Raises ``OSError``.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    done = dropped = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            done += count
            if on_bytes is not None:
                on_bytes(count)
            if done - dropped >= _DROP_BYTES:
                drop_pages(file.fileno(), dropped, done - dropped)
                dropped = done
    return digest.hexdigest()


def drop_pages(descriptor: int, offset: int, length: int) -> None:
    """Tell the system that these pages of an open file are not needed again."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
