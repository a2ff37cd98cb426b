"""A file on its way to disk: hashed by a second thread while it is written, written back while it grows."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import queue
import threading
from pathlib import Path

from contract.checksums import drop_pages
from contract.manifest import FileEntry

WINDOW_BYTES = 128 * 1024 * 1024
_CHUNKS_IN_FLIGHT = 4
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_ALL = 7


class CancelledError(Exception):
    """The work was called off."""


class Output:
    """A new file; without a path its bytes are counted and hashed only."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("xb", buffering=0) if path is not None else None
        self._digest = hashlib.sha256()
        self._queue: queue.Queue[bytes | memoryview | None] = queue.Queue(_CHUNKS_IN_FLIGHT)
        self._thread = threading.Thread(target=self._hash, daemon=True)
        self._thread.start()
        self._size = self._started = self._dropped = 0

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._file is not None:
            self._file.close()

    def write(self, chunk: bytes | memoryview) -> None:
        """Append a chunk, which must not change any more."""
        self._queue.put(chunk)
        self._size += len(chunk)
        if self._file is None:
            return
        view = memoryview(chunk)
        while view:
            count = self._file.write(view)
            view = view[count:]
        if self._size - self._started >= WINDOW_BYTES:
            self._write_back(self._file.fileno())

    def finish(self) -> FileEntry:
        """Make it durable; its size and digest."""
        self._stop()
        if self._file is not None:
            os.fsync(self._file.fileno())
            if self._size > 2 * WINDOW_BYTES:
                drop_pages(self._file.fileno(), 0, 0)
        return FileEntry(self._size, self._digest.hexdigest())

    def _write_back(self, descriptor: int) -> None:
        """Start writing the newest window, wait for the one before it and let its pages go."""
        sync_file_range(descriptor, self._started, self._size - self._started, _SYNC_FILE_RANGE_WRITE)
        if self._started > self._dropped:
            sync_file_range(descriptor, self._dropped, self._started - self._dropped, _SYNC_FILE_RANGE_ALL)
            drop_pages(descriptor, self._dropped, self._started - self._dropped)
            self._dropped = self._started
        self._started = self._size

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _hash(self) -> None:
        while (chunk := self._queue.get()) is not None:
            self._digest.update(chunk)


@functools.cache
def _libc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        return ctypes.CDLL(None, use_errno=True)
    return None


def sync_file_range(descriptor: int, offset: int, length: int, flags: int) -> None:
    """Linux's call of that name; a hint, so that its absence and its errors do not matter."""
    call = getattr(_libc(), "sync_file_range", None)
    if call is not None:
        call(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(flags))
