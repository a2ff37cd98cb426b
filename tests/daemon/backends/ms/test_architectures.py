"""Every architecture in the engine, against the native classes of ``transformers``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from builder.families import family_of_config
from builder.package import Order, package
from builder.progress import Progress
from contract.networks import networks_folder
from daemon.backends.ms.kernels import FloatArray
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from tests.daemon.backends.ms.tiny_telechat2 import write_safetensors
from tests.reference.architectures import CASES, Case, prompt, random_weights
from tests.reference.make_goldens import GOLDENS, key_of
from tests.reference.telechat2_numpy import forward as telechat2

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
GOAL = 1e-4
"""Of the largest logit."""


def write_model(folder: Path, case: Case) -> Path:
    """A model directory for the runner alone."""
    family = family_of_config(case.config, "the test")
    write_safetensors(folder / "model.safetensors", random_weights(case.config, case.without))
    limits = {"max_seq_len": case.context, "max_input_tokens": case.context - 1}
    serving = {"format_version": 1, "backend": "ms", "network": family.network, "limits": limits}
    (folder / "config.json").write_text(json.dumps({**case.config, "serving": serving}))
    shutil.copyfile(networks_folder() / family.network, folder / family.network)
    return folder


@contextmanager
def running(folder: Path, case: Case) -> Iterator[ModelRunner]:
    blocks = -(-max(case.lengths) // 16)
    options = RunnerOptions(
        num_blocks=blocks, max_rows=512, max_logit_rows=16, threads=2, activation_dtype="int8"
    )
    runner = ModelRunner.load(folder, options=options, progress=lambda fraction, what: None)
    try:
        yield runner
    finally:
        runner.close()


def logits(runner: ModelRunner, ids: list[int], cuts: list[int], rows: int) -> FloatArray:
    """Of the last rows, computed in these parts, at the base that the whole prompt has."""
    base, scale = runner.rope_for(len(ids))
    found = []
    for first, last in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        wanted = max(0, len(ids) - rows - first)
        part = Segment(
            ids[first:last], first, range(runner.num_blocks), min(wanted, last - first), base, scale
        )
        found.append(runner.execute([part]).copy())
    return np.concatenate(found)


def vocab_of(case: Case) -> int:
    return int(case.config.get("padded_vocab_size") or case.config["vocab_size"])


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_native_class_s(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    with np.load(GOLDENS) as goldens, running(write_model(tmp_path, case), case) as runner:
        for length in case.lengths:
            ids, expected = prompt(vocab_of(case), length), goldens[key_of(name, length)]
            cuts = list(range(512, length, 512))
            if length <= 512:
                cuts = [length - 5, length - 4, length - 3, length - 2, length - 1]  # prefill, then decode
            got = logits(runner, ids, cuts, len(expected))
            error = np.abs(got - expected).max() / np.abs(expected).max()
            assert error <= GOAL, f"{error:.1e} at {length}"
            if length <= 512:
                assert np.array_equal(logits(runner, ids, [], len(expected)), got)


@pytest.mark.parametrize("name", ["baichuan2", "chatglm2", "internlm2.5", "telechat2, experts"])
def test_packed_matrices_as_integers(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares of a packed matrix find their places in integers, too; rounding is all that differs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = CASES[name]
    folder = write_folder(tmp_path / "model", case)
    order = Order(model=str(folder), out=tmp_path / "out", quantize="int8", group_size=32)
    built = package(order, Progress(quiet=True))
    with np.load(GOLDENS) as goldens, running(built.path, case) as runner:
        expected = goldens[key_of(name, 77)]
        got = logits(runner, prompt(vocab_of(case), 77), [], len(expected))
    assert np.sqrt(np.mean((got - expected) ** 2)) <= 0.05 * np.sqrt(np.mean(expected**2))


def test_biases_of_experts(tmp_path: Path) -> None:
    """Which the native class lacks; the routing is as before."""
    case = replace(CASES["telechat2, experts"], without="")
    ids = prompt(vocab_of(case), 77)
    expected = telechat2(random_weights(case.config), dict(case.config), ids)
    with running(write_model(tmp_path, case), case) as runner:
        got = logits(runner, ids, [40, 76], 16)
    assert np.abs(got - expected[-16:]).max() <= GOAL * np.abs(expected).max()


def write_folder(folder: Path, case: Case) -> Path:
    """The case's model as a publisher offers it."""
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", random_weights(case.config, case.without))
    (folder / "config.json").write_text(json.dumps({**case.config, "bos_token_id": 1, "eos_token_id": 2}))
    words = {f"w{index}": index for index in range(vocab_of(case) - 2)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[gMASK]", "<sop>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


PACKAGED = [name for name, case in CASES.items() if max(case.lengths) <= 77 and "," not in name]


@pytest.mark.parametrize("name", [*PACKAGED, "telechat2, experts"])
def test_a_folder_without_a_recipe_is_packaged_and_computed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = CASES[name]
    folder = write_folder(tmp_path / "model", case)
    built = package(Order(model=str(folder), out=tmp_path / "out"), Progress(quiet=True))
    family = family_of_config(case.config, "the test")
    assert (built.plan.serving.family, built.plan.serving.network) == (family.name, family.network)
    with np.load(GOLDENS) as goldens, running(built.path, case) as runner:
        ids, expected = prompt(vocab_of(case), 77), goldens[key_of(name, 77)]
        got = logits(runner, ids, [], len(expected))
    assert np.abs(got - expected).max() <= GOAL * np.abs(expected).max()
