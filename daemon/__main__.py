"""The program ``daemon``, also as ``python -m daemon``: quiet when interrupted while it still imports."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from daemon.cli import main as program

        program()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
