"""The program ``client``, also as ``python -m client``."""

from __future__ import annotations

from contract.program import run


def main() -> None:
    run("client.cli")


if __name__ == "__main__":
    main()
