"""The program ``builder``, also as ``python -m builder``."""

from __future__ import annotations

from contract.program import run


def main() -> None:
    run("builder.cli")


if __name__ == "__main__":
    main()
