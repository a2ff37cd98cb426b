"""Runs a conversion: plan, check the space, write every file, publish."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from builder.checkpoints.output import CancelledError, Output
from builder.checkpoints.readers.source import Source, find_source
from builder.checkpoints.writers.streams import Stream
from builder.conversion.files import TargetFile, TargetFiles, target_files
from builder.conversion.order import ConvertOrder
from builder.conversion.plan import Conversion, plan_conversion
from builder.conversion.store import SUMS_NAME, Store, checksums, open_store, target_exists
from builder.conversion.subject import Subject, find_subject
from builder.forecast import size_text
from builder.progress import Progress
from builder.staging import sync_folder
from contract.checksums import sha256_of_bytes
from contract.faults import Fault, FaultKind
from contract.manifest import FileEntry

_WRITERS = 2
_RESERVE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Converted:
    status: Literal["converted", "planned", "discarded"]
    conversion: Conversion
    files: TargetFiles
    entries: Mapping[str, FileEntry] = field(default_factory=dict)
    """Size and SHA-256 of what was written."""
    resumed: tuple[str, ...] = ()
    """Files that an earlier run had finished."""


def convert(order: ConvertOrder, progress: Progress) -> Converted:
    """Convert a checkpoint. Raises ``Fault``; then nothing was written."""
    try:
        return _convert(order, progress)
    except OSError as error:
        raise _fault_of(error, order.target) from error


def _convert(order: ConvertOrder, progress: Progress) -> Converted:
    order.check()
    source = find_source(order.source)
    _check_target(order, source)
    by_name = order.keeps_names(len(source.ranks))
    subject = Subject() if by_name else find_subject(order.model, order.source)
    conversion = plan_conversion(source, subject, order)
    files = target_files(conversion, order)
    if order.dry_run:
        return Converted("planned", conversion, files)
    if order.discard:
        entries = _write_all(files, order, progress, None)
        return Converted("discarded", conversion, files, entries)
    strategies = tuple(path for path in (order.strategy, order.target_strategy) if path is not None)
    stated = [_state(path) for path in (*source.files, *strategies)]
    facts = {"to": order.to, "dtype": order.dtype, "found": conversion.found, "model": str(subject.facts)}
    fingerprint = files.fingerprint({"source": stated, **facts})
    with open_store(order.target, fingerprint, progress) as store:
        resumed = tuple(sorted(store.done))
        _check_space(files, store, order.target)
        entries = _write_all(files, order, progress, store)
        if not order.single_file:
            entries = {**entries, **_write_small(files, entries, store)}
        sync_folder(store.folder)
        store.finish(order.target, order.single_file, order.replace)
    return Converted("converted", conversion, files, entries, resumed)


def _state(path: Path) -> list[object]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _check_target(order: ConvertOrder, source: Source) -> None:
    target = order.target.resolve()
    if any(target == path.resolve() or target in path.resolve().parents for path in source.files):
        message = f"{order.target} holds the source itself"
        raise Fault(FaultKind.INVALID_REQUEST, message, "choose another target")
    if order.target.exists() and not (order.replace or order.discard):
        raise target_exists(order.target)
    if order.replace and not order.discard and _is_foreign(order.target):
        message = f"{order.target} is a folder that builder convert did not write"
        raise Fault(FaultKind.INVALID_REQUEST, message, "remove it yourself, or choose another target")


def _is_foreign(target: Path) -> bool:
    """A folder of other things, which --replace must not remove."""
    return target.is_dir() and not (target / SUMS_NAME).is_file() and any(target.iterdir())


def _check_space(files: TargetFiles, store: Store, target: Path) -> None:
    free = shutil.disk_usage(store.folder).free
    missing = [file.most_bytes for file in files.weights if file.name not in store.done]
    needed = sum(missing) + sum(map(len, files.small.values())) + _RESERVE_BYTES
    if needed > free:
        message = f"{target.parent} has {size_text(free)} free; {target.name} needs {size_text(needed)}"
        hint = "free some space, or choose a target on another disk"
        raise Fault(FaultKind.TOO_LARGE, message, hint, {"free": free, "needed": needed})


def _write_all(
    files: TargetFiles, order: ConvertOrder, progress: Progress, store: Store | None
) -> dict[str, FileEntry]:
    """Write all weight files that are not there yet; the first failure stops the others."""
    cancelled = threading.Event()
    done = dict(store.done) if store is not None else {}
    waiting = [file for file in files.weights if file.name not in done]
    title = "reading" if order.discard else f"writing {order.target.name}"
    with progress.stage(title, sum(file.tensor_bytes for file in waiting)) as on_bytes:
        writer = _Writer(store, order, cancelled, on_bytes)
        with ThreadPoolExecutor(_WRITERS) as pool:
            futures = [pool.submit(writer.write, file) for file in waiting]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() and not future.exception() for future in futures):
                    cancelled.set()
                    pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            failure = None if future.cancelled() else future.exception()
            if failure is not None and not isinstance(failure, CancelledError):
                raise failure
    written = {file.name: future.result() for file, future in zip(waiting, futures, strict=True)}
    return {**done, **written}


@dataclass(frozen=True)
class _Writer:
    store: Store | None
    order: ConvertOrder
    cancelled: threading.Event
    on_bytes: Callable[[int], None]

    def write(self, file: TargetFile) -> FileEntry:
        path = self.store.path(file.name) if self.store is not None else None
        stream = Stream(str(self.order.source), self.order.allow_nonfinite, self._check)
        with Output(path) as output:
            for chunk in file.stream(stream):
                output.write(chunk)
                self.on_bytes(len(chunk))
            entry = output.finish()
        if self.store is not None:
            self.store.note(file.name, entry)
        return entry

    def _check(self) -> None:
        if self.cancelled.is_set():
            raise CancelledError


def _write_small(files: TargetFiles, entries: Mapping[str, FileEntry], store: Store) -> dict[str, FileEntry]:
    """Index and checksums."""
    added = {name: FileEntry(len(data), sha256_of_bytes(data)) for name, data in files.small.items()}
    for name, data in {**files.small, SUMS_NAME: checksums({**entries, **added})}.items():
        store.path(name).write_bytes(data)
    return added


def _fault_of(error: OSError, target: Path) -> Fault:
    where = error.filename or target
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message = f"the disk of {target.parent} became full: {error.strerror}"
        hint = "free some space and run the same command again: it goes on behind the finished files"
        return Fault(FaultKind.TOO_LARGE, message, hint)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        message = f"{where} cannot be read or written: {error.strerror}"
        return Fault(FaultKind.FORBIDDEN, message, "choose another path, or change its permissions")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        message = f"{where} is in the way: {error.strerror}"
        return Fault(FaultKind.INVALID_CONFIG, message, "choose another target")
    return Fault(FaultKind.INTERNAL, f"{where}: {error.strerror or error}", "run it again with --debug")
