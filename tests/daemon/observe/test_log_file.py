"""A log that has grown large is moved aside, and nothing that is written meanwhile is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WRITER = """
import logging, os, sys
from pathlib import Path
from daemon.observe.logs import LogFile, configure
configure(LogFile(Path(sys.argv[1]), 10_000))
for number in range(100):
    logging.getLogger("test").info("line %d %s", number, "x" * 60)
    os.write(2, b"native %d\\n" % number)
"""


def test_a_large_log_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with path.open("ab") as log:
        command = [sys.executable, "-c", WRITER, str(path)]
        subprocess.run(command, stdout=log, stderr=log, check=True, cwd=ROOT, timeout=30)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["daemon.log", "daemon.log.1"]
    assert path.stat().st_size < 12_000
    assert (tmp_path / "daemon.log.1").stat().st_size < 12_000
    lines = (tmp_path / "daemon.log.1").read_text("utf-8") + path.read_text("utf-8")
    numbers = [int(line.split()[1]) for line in lines.splitlines() if line.startswith("native")]
    assert numbers == list(range(numbers[0], 100))
