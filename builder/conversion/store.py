"""Where a conversion grows: a locked dot-folder beside the target that survives an interruption.

Every finished file is noted with its SHA-256. The same conversion, started again, reads these files once more
and goes on behind them; another conversion to the same target begins anew. One rename publishes the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from builder.progress import Progress
from builder.staging import exchange, publish, replace_file, sync_folder
from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.manifest import FileEntry, canonical_json

_JOURNAL = "journal.json"
SUMS_NAME = "SHA256SUMS"


@dataclass
class Store:
    """The growing result."""

    folder: Path
    fingerprint: str
    done: dict[str, FileEntry] = field(default_factory=dict)
    """Finished files."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """Where a file grows; nothing is there yet."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def note(self, name: str, entry: FileEntry) -> None:
        """A file is finished and durable."""
        with self._lock:
            self.done[name] = entry
            files = {name: [entry.size, entry.sha256] for name, entry in self.done.items()}
            content = canonical_json({"fingerprint": self.fingerprint, "files": files})
            replace_file(self.folder / _JOURNAL, content)

    def finish(self, target: Path, single_file: bool, replace: bool) -> None:
        """Put the result in its place. Raises ``Fault`` when something has come there meanwhile."""
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        grown = self.folder / target.name if single_file else self.folder
        for folder in (path for path in grown.rglob("*") if path.is_dir()):
            sync_folder(folder)
        if replace and target.exists():
            exchange(grown, target)
            return
        try:
            publish(grown, target)
        except FileExistsError:
            raise target_exists(target) from None

    def restore(self, progress: Progress) -> None:
        """Take over what an earlier run of the same conversion finished; remove everything else."""
        noted = _read_journal(self.folder / _JOURNAL, self.fingerprint)
        whole = {
            name: entry
            for name, entry in noted.items()
            if (self.folder / name).is_file() and (self.folder / name).stat().st_size == entry.size
        }
        total = sum(entry.size for entry in whole.values())
        with progress.stage("verifying finished files", total) as on_bytes:
            for name, entry in whole.items():
                if sha256_of_file(self.folder / name, on_bytes) == entry.sha256:
                    self.done[name] = entry
        self.keep_finished()

    def keep_finished(self) -> None:
        """Remove what is not finished; without anything finished, all."""
        if not self.done:
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        kept = {self.folder / name for name in self.done} | {self.folder / _JOURNAL}
        for path in [path for path in self.folder.rglob("*") if path.is_file() and path not in kept]:
            path.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def open_store(target: Path, fingerprint: str, progress: Progress) -> Iterator[Store]:
    """The store of a target, locked. Raises ``Fault`` when somebody else writes there.

    A fault removes it; an interruption or a full disk leaves it for the next run.
    """
    folder = target.parent / f".converting-{target.name}"
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror}"
        raise Fault(
            FaultKind.FORBIDDEN, message, "choose a target in a folder that you may write to"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"another builder is writing {target}"
            raise Fault(FaultKind.ALREADY_EXISTS, message, "wait for it, or choose another target") from None
        store = Store(folder, fingerprint)
        store.restore(progress)
        try:
            yield store
        except (Fault, OSError, KeyboardInterrupt) as reason:
            store.keep_finished()
            if not store.done or (isinstance(reason, Fault) and reason.kind is not FaultKind.TOO_LARGE):
                store.remove()
            raise
        store.remove()  # of a single file the rest; of a replaced target the old one
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty: the result is there, or what the next run needs
            for empty in made:
                empty.rmdir()


def checksums(entries: Mapping[str, FileEntry]) -> bytes:
    """What ``sha256sum --check`` reads."""
    return "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(entries.items())).encode()


def target_exists(target: Path) -> Fault:
    """The refusal to overwrite."""
    return Fault(FaultKind.ALREADY_EXISTS, f"{target} exists", "choose another target, or say --replace")


def _read_journal(path: Path, fingerprint: str) -> dict[str, FileEntry]:
    try:
        journal = json.loads(path.read_bytes())
        if journal["fingerprint"] != fingerprint:
            return {}
        return {name: FileEntry(int(size), str(digest)) for name, (size, digest) in journal["files"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
