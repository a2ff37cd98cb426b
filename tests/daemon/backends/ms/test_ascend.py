"""What the Ascend runner passes to mindformers, against a stand-in; tests/builder/engines has the real."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.ms.ascend import AscendRunner
from daemon.backends.ms.runner import RunnerOptions
from daemon.backends.ms.segments import Segment
from tests.daemon.backends.ms.tiny_llama import LLAMA

OPTIONS = RunnerOptions(num_blocks=8)
VOCAB = int(LLAMA["vocab_size"])


class Logits:
    def __init__(self, values: Any) -> None:
        self._values = values

    def asnumpy(self) -> Any:
        return self._values


class ModelRunner:
    """In place of mindformers': the logits of a sequence are all its last token."""

    npu_num_blocks = 8
    made: dict[str, Any]
    calls: list[dict[str, Any]]

    def __init__(self, **arguments: Any) -> None:
        type(self).made, type(self).calls = arguments, []

    def forward(self, **arguments: Any) -> Logits:
        self.calls.append(arguments)
        ends = np.cumsum(arguments["q_seq_lens"]) - 1
        return Logits(np.repeat(arguments["input_ids"][ends, None].astype(np.float32), VOCAB, axis=1))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = ModuleType("mindformers")
    module.ModelRunner = ModelRunner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mindformers", module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dict(LLAMA)))
    return tmp_path


def load(folder: Path) -> AscendRunner:
    return AscendRunner.load(folder, options=OPTIONS, progress=lambda fraction, what: None)


def test_sequences_that_begin_are_computed_apart(folder: Path) -> None:
    runner = load(folder)
    assert ModelRunner.made["model_path"] == str(folder)
    assert ModelRunner.made["npu_mem_size"] == 1
    segments = [
        Segment([11, 12, 13], 0, [5], 2, 1.0, 1.0),
        Segment([21], 17, [3, 1], 0, 1.0, 1.0),
        Segment([31, 32], 0, [2], 2, 1.0, 1.0),
        Segment([41, 42], 30, [0, 7], 1, 1.0, 1.0),
    ]
    logits = runner.execute(segments)
    assert logits[:, 0].tolist() == [13, 21, 42], "one row for each that wants one, in order"
    first, second = ModelRunner.calls
    assert (first["prefill"], second["prefill"]) == (True, False)
    assert first["input_ids"].tolist() == [11, 12, 13, 31, 32]
    assert first["valid_length_each_example"] == [3, 2]
    assert first["slot_mapping"].tolist() == [80, 81, 82, 32, 33]
    assert second["input_ids"].tolist() == [21, 41, 42]
    assert second["valid_length_each_example"] == [18, 32]
    assert second["q_seq_lens"].tolist() == [1, 2]
    assert second["position_ids"].tolist() == [17, 30, 31]
    assert second["slot_mapping"].tolist() == [1 * 16 + 1, 7 * 16 + 14, 7 * 16 + 15]
    assert second["block_tables"].tolist() == [[3, 1], [0, 7]]


def test_what_it_cannot_do_is_refused(folder: Path) -> None:
    runner = load(folder)
    for segment in (Segment([1, 2, 3], 0, [0], 0, 1.0, 1.0), Segment([1], 0, [0], 0, 1.0, 1.0, adapter=4)):
        with pytest.raises(Fault) as caught:
            runner.execute([segment])
        assert caught.value.kind is FaultKind.UNSUPPORTED
    with pytest.raises(Fault, match="builder package --adapter"):
        runner.load_adapter(folder)


def test_without_mindformers_there_is_a_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mindformers", None)
    with pytest.raises(Fault, match="install mindformers"):
        load(folder)
