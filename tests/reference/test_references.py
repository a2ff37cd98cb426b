"""The references in NumPy agree with the recorded logits of ``transformers``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.reference.architectures import CASES, prompt, random_weights
from tests.reference.decoders_numpy import baichuan2, chatglm2, fm9g, slopes
from tests.reference.llama_numpy import forward as llama
from tests.reference.make_goldens import GOLDENS, key_of
from tests.reference.telechat2_numpy import forward as telechat2

FORWARD: dict[str, Any] = {
    "baichuan2": baichuan2,
    "baichuan2, six heads": baichuan2,
    "chatglm2": chatglm2,
    "fm9g": fm9g,
    "llama2": llama,
    "qwen1.5": llama,
    "telechat2": telechat2,
    "telechat2, shared heads": telechat2,
    "telechat2, experts": telechat2,
}


@pytest.mark.parametrize("name", FORWARD)
def test_numpy_computes_what_transformers_does(name: str) -> None:
    case = CASES[name]
    weights = random_weights(case.config, case.without)
    ids = prompt(int(case.config.get("padded_vocab_size") or case.config["vocab_size"]), case.lengths[0])
    got = FORWARD[name](weights, dict(case.config), ids)
    with np.load(GOLDENS) as goldens:
        expected = goldens[key_of(name, case.lengths[0])]
    assert np.abs(got[-len(expected) :] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_published_slopes() -> None:
    found = np.array(slopes(40))
    assert np.allclose(found[:4], [0.84089642, 0.70710678, 0.59460356, 0.5], atol=1e-8)
    assert found[31] == 0.00390625
    last = [0.91700404, 0.77110541, 0.64841978, 0.54525387, 0.45850202, 0.38555271, 0.32420989, 0.27262693]
    assert np.allclose(found[32:], last, atol=1e-8)
    assert slopes(6) == [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]
