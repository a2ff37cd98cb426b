"""Entry of the detached daemon: ``python -m daemon.main`` with the settings on standard input."""

from __future__ import annotations

import sys

from daemon.launch import LOG_KEPT_BYTES
from daemon.notify import StartReport
from daemon.observe.logs import LogFile, configure
from daemon.run import run
from daemon.settings import Settings
from daemon.state import StateDirectory


def main(argv: list[str]) -> int:
    """``argv`` holds the number of the descriptor that the starter reads."""
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    log = LogFile(StateDirectory(settings.state_path).log_path, LOG_KEPT_BYTES)
    configure(log, settings.log_level.upper())
    return run(settings, StartReport(int(argv[0])), lambda _info: None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
