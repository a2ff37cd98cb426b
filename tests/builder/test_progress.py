"""Progress: a bar on a terminal, a line per tenth elsewhere, nothing when quiet or quick."""

from __future__ import annotations

import io

from builder.progress import Progress

TOTAL = 100 * 2**20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, quiet: bool = False, total: int = TOTAL) -> str:
    with Progress(quiet, stream).stage("writing x", total) as on_bytes:
        for _ in range(50):
            on_bytes(total // 50)
    return stream.getvalue()


def test_a_line_per_tenth() -> None:
    lines = shown(io.StringIO()).splitlines()
    assert len(lines) == 10
    assert lines[0] == "writing x: 10 % (10.0 MiB of 100.0 MiB)"
    assert lines[-1].startswith("writing x: 100 %")


def test_a_bar_on_a_terminal() -> None:
    assert "writing x" in shown(Terminal())


def test_nothing_when_quiet_or_quick() -> None:
    assert shown(io.StringIO(), quiet=True) == ""
    assert shown(io.StringIO(), total=1000) == ""
