"""Entry of the detached daemon: ``python -m daemon.main`` with the settings on standard input."""

from __future__ import annotations

import sys

from daemon.notify import StartReport
from daemon.observe.logs import configure
from daemon.run import run
from daemon.settings import Settings


def main(argv: list[str]) -> int:
    """``argv`` holds the number of the descriptor that the starter reads."""
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    configure(sys.stderr, settings.log_level.upper())
    return run(settings, StartReport(int(argv[0])), lambda _info: None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
