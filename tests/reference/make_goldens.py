"""Writes goldens.npz: what ``transformers`` computes for the small models of every architecture.

pip install torch==2.13.0 'transformers>=5'
python -m tests.reference.make_goldens
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).with_name("goldens.npz")


def key_of(name: str, length: int) -> str:
    """Of a case and a prompt's length."""
    return f"{name} at {length}"


def main() -> int:
    from tests.reference.architectures import CASES
    from tests.reference.oracles import oracle_logits

    goldens = {}
    for name, case in CASES.items():
        for length in case.lengths:
            goldens[key_of(name, length)] = oracle_logits(case, length)
            sys.stdout.write(f"{key_of(name, length)}\n")
    np.savez_compressed(GOLDENS, **goldens)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
