"""MindSpore's compiled graph, kept in a file beside the packed weights.

MindSpore keeps compiled graphs in a folder, which it trusts. Here the folder lives as long as one
compilation; what it held is a zip archive with checksums, which is written under another name and renamed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from contract.checksums import sha256_of_bytes

_ENABLE, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
"""Variables that MindSpore reads when it compiles."""

_log = logging.getLogger(__name__)


class GraphCache:
    """The file of one compiled graph."""

    def __init__(self, path: Path) -> None:
        """``path``: its name depends on all that determines the graph."""
        self.path = path

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """What MindSpore compiles meanwhile is taken from the file, or goes there."""
        with tempfile.TemporaryDirectory(prefix="mindport-graph-") as name:
            folder = Path(name)
            self._unpack(folder)
            before = _files(folder)
            with _no_entry_script(), _variables({_ENABLE: "1", _PATH: name}):
                yield
            if (after := _files(folder)) != before:
                self._keep(folder, after)

    def _unpack(self, folder: Path) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                archive.extractall(folder)
        except FileNotFoundError:
            return
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            _log.warning("the compiled graph in %s is not used: %s", self.path, error)
            for path in _files(folder):
                path.unlink()

    def _keep(self, folder: Path, files: dict[Path, bytes]) -> None:
        part = self.path.with_name(f"{self.path.stem}-{os.getpid()}.part")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with zipfile.ZipFile(part, "w") as archive:
                for path, content in files.items():
                    archive.writestr(str(path.relative_to(folder)), content)
            part.replace(self.path)
        except OSError as error:
            _log.warning("the compiled graph cannot be kept in %s: %s", self.path.parent, error)
            with contextlib.suppress(OSError):
                part.unlink()


def code_digest() -> str:
    """Of the modules that networks are built from."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return sha256_of_bytes(b"".join(source.read_bytes() for source in sources))


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def _no_entry_script() -> Iterator[None]:
    """MindSpore would parse the program and all that it imports, and fail where the program is no file."""
    from mindspore.graph import api

    before, api.entry_script_path = api.entry_script_path, None
    try:
        yield
    finally:
        api.entry_script_path = before


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
