"""Sampling: the request wins over the model's file, that over the dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from contract.serving import read_serving
from daemon.backends.base import TokenSampling
from daemon.service.defaults import GenerationDefaults, read_generation_defaults, resolve
from tests.fakes import END_ID, request_of, write_model

MODEL = GenerationDefaults(temperature=0.3, top_k=5, top_p=0.85, repetition_penalty=1.03, eos_token_id=2)


def resolved(defaults: GenerationDefaults, dialect: str = "mindie", **sampling: Any) -> TokenSampling:
    return resolve(request_of("x", dialect=dialect, sampling=sampling), defaults, 10)


def test_greedy_unless_someone_says_otherwise() -> None:
    assert resolved(GenerationDefaults()).temperature == 0
    assert resolved(GenerationDefaults(), "openai").temperature == 1
    assert resolved(MODEL, "openai").temperature == 0.3


def test_do_sample_false_is_greedy() -> None:
    greedy = GenerationDefaults(do_sample=False, temperature=0.3, top_k=5)
    assert resolved(greedy, "openai").temperature == 0
    assert resolved(greedy).top_k == 0
    assert resolved(greedy, temperature=0.7).temperature == 0.7
    assert resolved(greedy, do_sample=True).temperature == 0.3
    assert resolved(MODEL, temperature=0.7, do_sample=False).temperature == 0
    assert resolved(MODEL, temperature=0.0, do_sample=True).temperature == 0


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_file_that_decides_makes_all_dialects_alike(do_sample: bool) -> None:
    decided = GenerationDefaults(do_sample=do_sample, temperature=0.3, top_k=5, top_p=0.85)
    answers = [resolved(decided, dialect) for dialect in ("mindie", "tgi", "openai", "vllm", "triton")]
    assert answers == answers[:1] * 5


def test_the_request_wins() -> None:
    sampling = resolved(MODEL, top_k=1, top_p=0.5, temperature=2.0, repetition_penalty=1.5, seed=3)
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (1, 0.5, 2.0)
    assert (sampling.repetition_penalty, sampling.seed) == (1.5, 3)
    assert resolved(MODEL, temperature=1.0, top_k=-1).top_k == 0
    assert resolved(MODEL).repetition_penalty == 1.03


def test_end_tokens() -> None:
    assert resolved(MODEL, stop_token_ids=(7, 2)).stop_token_ids == (2, 7)
    assert resolved(MODEL, ignore_eos=True).stop_token_ids == ()
    assert resolved(MODEL, ignore_eos=True, stop_token_ids=(7,)).stop_token_ids == (7,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("top_p", 1.1),
        ("top_p", 0.0),
        ("top_k", -2),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("max_tokens", -1),
        ("logprobs", 21),
        ("temperature", float("nan")),
    ],
)
def test_ranges(field: str, value: float) -> None:
    with pytest.raises(Fault, match=field) as caught:
        resolved(GenerationDefaults(), "mindie", **{field: value})
    assert caught.value.kind is FaultKind.INVALID_REQUEST


def test_an_empty_stop_string() -> None:
    with pytest.raises(Fault, match="empty"):
        resolved(GenerationDefaults(), stop=("a", ""))


def test_stop_strings_are_bounded() -> None:
    resolved(GenerationDefaults(), stop=("a" * 1024,))
    for stop in (("a" * 1025,), ("a" * 1000,) * 5):
        with pytest.raises(Fault, match="stop strings may have"):
            resolved(GenerationDefaults(), stop=stop)


def test_reading(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m", generation={"do_sample": False, "eos_token_id": [END_ID, 6], "x": 1})
    defaults = read_generation_defaults(folder, read_serving(folder))
    assert defaults.end_ids == (END_ID, 6)
    assert defaults.do_sample is False
    (folder / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(Fault, match="temperature") as caught:
        read_generation_defaults(folder, read_serving(folder))
    assert caught.value.kind is FaultKind.INVALID_MODEL
