"""A folder is built beside its place under a lock and a dot name, then moved there in one step.

Whatever happens, the place holds a finished folder or none: an interrupted builder removes its own staging
folder, a killed one leaves it without a lock, and the next builder removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".building-"
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A locked, empty folder below ``parent``; it is gone afterwards unless it was moved."""
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    folder, lock = _create(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with contextlib.suppress(OSError):  # not empty: the folder was moved, or somebody else is here
            for empty in made:
                empty.rmdir()


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the staging folders that no living builder holds."""
    removed = []
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        except OSError:  # held: somebody is at work
            continue
        finally:
            os.close(descriptor)
    return removed


def publish(folder: Path, place: Path) -> None:
    """Move a finished folder to a place that is free. Raises ``FileExistsError``."""
    if _renameat2(folder, place, _RENAME_NOREPLACE):
        sync_folder(place.parent)
        return
    if place.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
    folder.rename(place)
    sync_folder(place.parent)


def exchange(folder: Path, place: Path) -> None:
    """Put a finished folder in the place of another, which ``folder`` then holds."""
    if not _renameat2(folder, place, _RENAME_EXCHANGE):
        aside = folder.with_name(f"{_PREFIX}{secrets.token_hex(4)}")
        place.rename(aside)
        folder.rename(place)
        aside.rename(folder)
    sync_folder(place.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(parent: Path) -> tuple[Path, int]:
    while True:
        folder = parent / f"{_PREFIX}{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another builder took it for abandoned before it was locked
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists() and folder.stat().st_ino == os.fstat(descriptor).st_ino:
            return folder, descriptor
        os.close(descriptor)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Linux's call of that name. ``False`` when system or file system lack it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(target))
