"""mindformers reads a packaged folder: its tokenizer, its yaml, its config classes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer

from tests.builder.engines.conftest import ROOT, Ask

TEXTS = ["生抽与老抽的区别？", "<_user>你好<_bot>", "12+30="]
SIZES = ("hidden_size", "n_layer", "n_head", "num_key_value_heads", "ffn_hidden_size", "vocab_size")
PROGRAM = f"""
import json, sys
from pathlib import Path
from mindformers import MindFormerConfig
from mindformers.model_runner import get_model
from mindformers.models.telechat2.configuration_telechat2 import Telechat2Config
folder = Path(sys.argv[1])
tokenizer, builder = get_model(str(folder))
[path] = folder.glob("*.yaml")
read = MindFormerConfig(str(path))
config = Telechat2Config(**json.loads((folder / "config.json").read_text()))
ids = [tokenizer(text)["input_ids"] for text in {TEXTS!r}]
print(json.dumps({{
    "ids": ids,
    "text": tokenizer.decode(ids[0]),
    "eos": tokenizer.eos_token_id,
    "chat": builder.make_context(0, [{{"role": "user", "content": "你好"}}]),
    "yaml": {{"arch": read.model.arch.type, **dict(read.model.model_config)}},
    "config": {{name: getattr(config, name) for name in {SIZES!r}}},
}}, default=str))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, packaged."""
    out = tmp_path_factory.mktemp("repository")
    command = [sys.executable, "-m", "builder.cli", "package", "--model", "telechat2_tiny", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return out / "telechat2_tiny" / "1"


@pytest.fixture(scope="module")
def theirs(ask: Ask, folder: Path) -> Mapping[str, Any]:
    answers: Mapping[str, Any] = ask(PROGRAM, folder)
    return answers


def test_get_model_returns_the_tokenizer(theirs: Mapping[str, Any], folder: Path) -> None:
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert theirs["ids"] == [ours.encode(text).ids for text in TEXTS]
    assert theirs["text"] == TEXTS[0]
    assert theirs["eos"] == 2
    assert theirs["chat"][-3:] == ours.encode("<_user>你好<_bot>").ids


def test_the_yaml_is_read_as_it_was_written(theirs: Mapping[str, Any], folder: Path) -> None:
    [path] = folder.glob("*.yaml")
    written = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    assert theirs["yaml"]["arch"] == written["arch"]["type"]
    for key in ("hidden_size", "num_layers", "num_heads", "n_kv_heads", "vocab_size", "rms_norm_eps"):
        assert theirs["yaml"][key] == written["model_config"][key]


def test_the_config_class_takes_config_json(theirs: Mapping[str, Any]) -> None:
    assert theirs["config"] == dict(zip(SIZES, (256, 6, 8, 4, 640, 4096), strict=True))


SIGNATURES = """
import inspect, json
from mindformers import ModelRunner
from mindformers.model_runner import MindIEModelRunner
functions = (ModelRunner.__new__, MindIEModelRunner.forward)
print(json.dumps([list(inspect.signature(function).parameters) for function in functions]))
"""


def test_the_calls_for_ascend_fit_its_model_runner(ask: Ask, folder: Path) -> None:
    source = (ROOT / "daemon" / "backends" / "ms" / "ascend.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = {ast.unparse(call.func): [word.arg for word in call.keywords] for call in calls}
    construct, forward = ask(SIGNATURES, folder)
    assert named["ModelRunner"]
    assert set(named["ModelRunner"]) <= set(construct)
    assert named["self._model.forward"]
    assert set(named["self._model.forward"]) <= set(forward)
