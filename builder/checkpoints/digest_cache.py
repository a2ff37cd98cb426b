"""Remembers SHA-256 of large files, so that an unchanged file is read once.

A file counts as unchanged while device, inode, size and modification time are. The cache is a convenience:
when it cannot be read or written, files are simply hashed again, and ``builder verify`` never asks it.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_DIGEST = re.compile(r"[0-9a-f]{64}")


class DigestCache:
    """One small file per known digest below ``folder``."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()

    def get(self, path: Path) -> str | None:
        """The digest of a file that has not changed since it was stored."""
        try:
            digest = self._entry(path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return digest if _DIGEST.fullmatch(digest) else None

    def put(self, path: Path, digest: str) -> None:
        """Store the digest of a file as it is now."""
        with contextlib.suppress(OSError):
            entry = self._entry(path)
            entry.parent.mkdir(parents=True, exist_ok=True)
            partial = entry.with_name(f"{entry.name}.{os.getpid()}")
            partial.write_text(digest, encoding="ascii")
            partial.replace(entry)

    def _entry(self, path: Path) -> Path:
        status = path.stat()
        return self._folder / f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def default_folder() -> Path:
    """Below the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mindport" / "sha256"
