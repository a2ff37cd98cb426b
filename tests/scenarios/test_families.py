"""Small models of other architectures, packaged from their folders and asked through one daemon."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import pytest

from builder.package import Order, package
from builder.progress import Progress
from tests.daemon.backends.ms.test_architectures import vocab_of, write_folder
from tests.reference.architectures import CASES, prompt, random_weights
from tests.reference.decoders_numpy import baichuan2, chatglm2
from tests.reference.telechat2_numpy import forward as telechat2
from tests.scenarios.terminal import RunningDaemon, running_daemon

ANSWER_LEN, END = 12, 2
MODELS: dict[str, tuple[str, Callable[..., Any]]] = {
    "slopes": ("baichuan2", baichuan2),
    "pairs": ("chatglm2", chatglm2),
    "experts": ("telechat2, experts", telechat2),
}


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningDaemon]:
    """One worker for each."""
    if importlib.util.find_spec("mindspore") is None:
        pytest.skip("MindSpore is not installed: pip install -e '.[ms]'")
    folder, repository = tmp_path_factory.mktemp("families"), tmp_path_factory.mktemp("repository")
    for name, (case, _) in MODELS.items():
        source = write_folder(folder / name, CASES[case])
        package(Order(model=str(source), out=repository), Progress(quiet=True))
    with running_daemon(repository, tmp_path_factory.mktemp("state")) as running:
        yield running


def greedy(name: str, ids: Sequence[int]) -> list[int]:
    """What the reference continues with."""
    case, forward = MODELS[name]
    weights = random_weights(CASES[case].config, CASES[case].without)
    whole = list(ids)
    while len(whole) < len(ids) + ANSWER_LEN and whole[-1] != END:
        whole.append(int(forward(weights, dict(CASES[case].config), whole)[-1].argmax()))
    return whole[len(ids) :]


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_the_reference_s(daemon: RunningDaemon, name: str) -> None:
    vocab = vocab_of(CASES[MODELS[name][0]])
    ids = [token for token in prompt(vocab, 30) if END < token < vocab - 2]
    text = " ".join(f"w{token}" for token in ids)
    prefix = [vocab - 2, vocab - 1] if name == "pairs" else []
    expected = [token for token in greedy(name, [*prefix, *ids]) if token != END]
    body = {"model": name, "prompt": text, "max_tokens": ANSWER_LEN, "temperature": 0}
    response = httpx2.post(f"{daemon.http}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["usage"]["prompt_tokens"] == len(prefix) + len(ids)
    assert answer["choices"][0]["text"] == "".join(f"w{token}" for token in expected if token < vocab - 2)
