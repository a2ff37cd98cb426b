"""How each of the programs begins."""

from __future__ import annotations

import sys
from importlib import import_module


def run(command_line: str) -> None:
    """Import a module and call its ``main``. Ctrl-C while it still imports ends with 130, in silence."""
    try:
        import_module(command_line).main()
    except KeyboardInterrupt:
        sys.exit(130)
