"""The program ``daemon``, also as ``python -m daemon``."""

from __future__ import annotations

from contract.program import run


def main() -> None:
    run("daemon.cli")


if __name__ == "__main__":
    main()
