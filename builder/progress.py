"""Says on stderr how far the work is: a bar on a terminal, a line per tenth elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

from builder.forecast import size_text

_WORTH_SHOWING = 64 * 2**20


class Progress:
    """One bar or its plain form at a time."""

    def __init__(self, quiet: bool, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one stage of ``total`` bytes; call what it gives with each number of bytes done."""
        if self._quiet or total < _WORTH_SHOWING:
            yield _ignore
        elif self._stream.isatty():
            with self._bar(title, total) as advance:
                yield advance
        else:
            yield _Lines(title, total, self._stream).advance

    @contextlib.contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=Console(file=self._stream), transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda count: bars.advance(task, count)


class _Lines:
    def __init__(self, title: str, total: int, stream: TextIO) -> None:
        self._title, self._total, self._stream = title, total, stream
        self._done = self._tenth = 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            tenth = min(10, self._done * 10 // self._total)
            if tenth > self._tenth:
                self._tenth = tenth
                of = f"{size_text(self._done)} of {size_text(self._total)}"
                self._stream.write(f"{self._title}: {tenth * 10} % ({of})\n")
                self._stream.flush()


def _ignore(_count: int) -> None:
    return None
