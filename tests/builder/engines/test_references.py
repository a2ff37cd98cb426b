"""The recorded logits of every architecture are what ``transformers`` computes now, but for the longest."""

from __future__ import annotations

from pathlib import Path

from tests.builder.engines.conftest import ROOT, Ask
from tests.reference.architectures import CASES

LONGEST = 1000
PROGRAM = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from tests.reference.architectures import CASES
from tests.reference.make_goldens import GOLDENS, key_of
from tests.reference.oracles import oracle_logits
errors = {{}}
with np.load(GOLDENS) as goldens:
    for name, case in CASES.items():
        for length in (length for length in case.lengths if length <= {LONGEST}):
            expected = goldens[key_of(name, length)]
            found = oracle_logits(case, length)
            errors[key_of(name, length)] = float(np.abs(found - expected).max() / np.abs(expected).max())
print(json.dumps(errors))
"""


def test_the_recorded_logits_can_be_computed_again(ask: Ask, tmp_path: Path) -> None:
    errors = ask(PROGRAM, tmp_path / "model")
    assert len(errors) == sum(length <= LONGEST for case in CASES.values() for length in case.lengths)
    assert max(errors.values()) <= 1e-5, errors
