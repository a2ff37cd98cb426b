"""Executes a plan: stage, fill, hash, sync, and only then move into the repository."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from builder.checkpoints.digest_cache import DigestCache
from builder.checkpoints.output import CancelledError
from builder.checkpoints.transfer import Carrier, Transferred
from builder.forecast import size_text
from builder.plan import Plan
from builder.progress import Progress
from builder.staging import exchange, publish, replace_file, staging_folder, sync_folder
from contract.checksums import sha256_of_bytes
from contract.faults import Fault, FaultKind
from contract.manifest import MANIFEST_NAME, FileEntry, Manifest, Provenance
from contract.serving import FORMAT_VERSION

_COPIERS = 2
_RESERVE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Target:
    """Where the result goes."""

    repository: Path
    model: str
    version: int | None = None
    """``None``: the highest there is, plus one."""
    replace: bool = False

    @property
    def folder(self) -> Path:
        return self.repository / self.model

    def versions(self) -> list[int]:
        """Existing versions, lowest first. Triton's rule: plain numbers that do not start with 0."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted(
            int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0")
        )


@dataclass(frozen=True)
class Written:
    path: Path
    manifest: Manifest
    errors: Mapping[str, float]
    """Quantized layer -> its relative error."""


def write(plan: Plan, target: Target, cache: DigestCache, progress: Progress) -> Written:
    """Build the version and put it in its place. Raises ``Fault``; then nothing was written."""
    try:
        check_space(plan, target)
        with staging_folder(target.folder) as folder:
            manifest, errors = _fill(folder, plan, cache, progress)
            path = _place(folder, target)
            update_pbtxt(plan, target)
    except OSError as error:
        raise _fault_of(error, plan, target) from error
    return Written(path, manifest, errors)


def check_space(plan: Plan, target: Target) -> None:
    """Refuse before the first byte when the result cannot fit. Raises ``Fault``."""
    folder = target.folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = plan.new_bytes + _RESERVE_BYTES
    if needed > free:
        message = f"{target.repository} has {size_text(free)} free; {plan.model} needs {size_text(needed)}"
        hint = "free some space, choose another --out, or use --link on the same file system"
        raise Fault(FaultKind.TOO_LARGE, message, hint, {"free": free, "needed": needed})


def update_pbtxt(plan: Plan, target: Target) -> None:
    """Write the model's config.pbtxt unless it is there as it should be."""
    path = target.folder / "config.pbtxt"
    if not path.is_file() or path.read_bytes() != plan.pbtxt:
        replace_file(path, plan.pbtxt)


def _fill(
    folder: Path, plan: Plan, cache: DigestCache, progress: Progress
) -> tuple[Manifest, dict[str, float]]:
    entries: dict[str, FileEntry] = {}
    for name, content in plan.files.items():
        _write_file(folder / name, content)
        entries[name] = FileEntry(len(content), sha256_of_bytes(content))
    sources: dict[str, FileEntry] = {}
    errors: dict[str, float] = {}
    with progress.stage(f"writing {plan.model}", sum(entry.size for entry in plan.weights)) as on_bytes:
        for name, transferred in _transfer_all(folder, plan, cache, on_bytes):
            entries[name] = transferred.written
            sources[name] = transferred.source
            errors.update(transferred.errors)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        layer_api=plan.serving.layer_api,
        files=dict(sorted(entries.items())),
        provenance=Provenance(
            builder=_version(),
            recipe=plan.recipe,
            fingerprint=plan.fingerprint,
            dtype=plan.serving.dtype,
            weights=dict(sorted(sources.items())),
            notes=list(plan.notes),
        ),
    )
    _write_file(folder / MANIFEST_NAME, manifest.to_bytes())
    for inner in sorted({(folder / name).parent for name in entries} | {folder}, reverse=True):
        sync_folder(inner)
    return manifest, errors


def _version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("mindport")
    return "source"


def _transfer_all(
    folder: Path, plan: Plan, cache: DigestCache, on_bytes: Callable[[int], None]
) -> Iterator[tuple[str, Transferred]]:
    """Bring all weight files over, a few at a time; the first failure stops the others."""
    cancelled = threading.Event()
    carrier = Carrier(cache, on_bytes, cancelled, plan.allow_nonfinite)
    with ThreadPoolExecutor(_COPIERS) as pool:
        futures: dict[str, Future[Transferred]] = {}
        try:
            for entry in plan.weights:
                futures[entry.name] = pool.submit(carrier.transfer, entry, folder)
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() and not future.exception() for future in futures.values()):
                cancelled.set()
                pool.shutdown(wait=True, cancel_futures=True)
        failures = [future.exception() for future in futures.values() if not future.cancelled()]
        for failure in failures:
            if failure is not None and not isinstance(failure, CancelledError):
                raise failure
    for name, future in futures.items():
        yield name, future.result()


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _place(folder: Path, target: Target) -> Path:
    """Move the finished folder to its version number."""
    folder.chmod(0o755)
    while True:
        version = target.version or max(target.versions(), default=0) + 1
        place = target.folder / str(version)
        if target.replace and place.exists():
            exchange(folder, place)
            return place
        try:
            publish(folder, place)
        except FileExistsError:
            if target.version is None:
                continue  # another builder was faster: take the next number
            raise version_exists(target) from None
        else:
            return place


def version_exists(target: Target) -> Fault:
    """The refusal to overwrite a version."""
    message = f"{target.folder / str(target.version)} exists, and versions are not overwritten"
    hint = "leave out --version for the next number, or say --replace"
    return Fault(FaultKind.ALREADY_EXISTS, message, hint)


def _fault_of(error: OSError, plan: Plan, target: Target) -> Fault:
    where = error.filename or target.folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message = f"the disk of {target.repository} became full while writing {plan.model}: {error.strerror}"
        hint = f"free {size_text(plan.new_bytes)}, or choose another --out; nothing was kept"
        return Fault(FaultKind.TOO_LARGE, message, hint)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "choose another --out, or change its permissions"
        return Fault(FaultKind.FORBIDDEN, f"{where} cannot be written: {error.strerror}", hint)
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return Fault(
            FaultKind.INVALID_CONFIG, f"{where} is in the way: {error.strerror}", "choose another --out"
        )
    return Fault(FaultKind.INTERNAL, f"{where}: {error.strerror or error}", "run it again with --debug")
