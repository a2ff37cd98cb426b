"""Sources of a tiny TeleChat2-shaped model, made on the spot."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import yaml
from safetensors.numpy import save_file

from builder.checkpoints.safetensors_header import TensorEntry, write_header
from builder.families import FAMILIES

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "architectures": ["TelechatForCausalLM"],
    "model_type": "telechat",
    "vocab_size": 320,
    "hidden_size": 16,
    "n_layer": 2,
    "n_head": 4,
    "num_key_value_heads": 2,
    "ffn_hidden_size": 24,
    "layer_norm_epsilon": 1e-5,
    "seq_length": 64,
    "training_seqlen": 64,
    "base_seqlen": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "torch_dtype": "float16",
}
MODEL_YAML: dict[str, Any] = {
    "load_checkpoint": "/data/ckpt/tiny.ckpt",
    "output_dir": "./output",
    "model": {
        "model_config": {
            "type": "TelechatConfig",
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "n_kv_heads": 2,
            "intermediate_size": 24,
            "vocab_size": 320,
            "rms_norm_eps": 1.0e-5,
            "seq_length": 64,
            "pretrain_seqlen": 64,
            "extend_method": "None",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            "block_size": 16,
            "num_blocks": 8,
        },
        "arch": {"type": "TelechatForCausalLM"},
    },
    "processor": {"tokenizer": {"type": "TelechatTokenizer", "vocab_file": "/data/tokenizer.model"}},
}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "family": "telechat",
    "publisher": {"name": "Nobody", "urls": ["https://example.invalid/tiny"]},
    "sources": {"root": "recipe", "folder": "sources", "files": ["model.safetensors", "tokenizer.model"]},
    "network": "telechat2.py",
    "yaml_template": "mindformers_telechat.yaml",
    "prompt": {"chat_template": "chat_telechat2.jinja"},
}


@dataclass(frozen=True)
class Workshop:
    """A recipe, its sources and an empty repository."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def sources(self) -> Path:
        return self.folder / "sources"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def edit_yaml(self, **changes: Any) -> Path:
        """Set keys of ``model_config``; ``None`` removes."""
        path = self.sources / "predict_tiny.yaml"
        data = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            if value is None:
                data["model"]["model_config"].pop(key, None)
            else:
                data["model"]["model_config"][key] = value
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    def edit_json(self, name: str, **changes: Any) -> None:
        path = self.sources / name
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**data, **changes}))

    def edit_recipe(self, **changes: Any) -> None:
        data = yaml.safe_load(self.recipe.read_text())
        self.recipe.write_text(yaml.safe_dump({**data, **changes}, sort_keys=False))

    def written(self) -> list[str]:
        """Everything below the repository, relative to it."""
        found = self.repository.rglob("*")
        return sorted(path.relative_to(self.repository).as_posix() for path in found)

    def config(self, version: int = 1) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(
            (self.repository / "tiny" / str(version) / "config.json").read_text()
        )
        return data


def tensors(config: dict[str, Any], dtype: str = "float16") -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(7)
    expected = FAMILIES["telechat"].expected_tensors(config)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in expected}


@pytest.fixture(scope="session")
def sentencepiece_bytes() -> bytes:
    """A byte-fallback BPE model with TeleChat2's control pieces."""
    writer = io.BytesIO()
    lines = [
        "你好，世界。生抽与老抽的区别？",
        "hello world, hello there",
        "1+1=2 and 10-3=7",
        "天气很好",
    ] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=writer,
        model_type="bpe",
        vocab_size=320,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=["<_user>", "<_bot>", "<_system>"],
        user_defined_symbols=["\n", "\t"],
        unk_piece="<_unk>",
        bos_piece="<_start>",
        eos_piece="<_end>",
        pad_id=3,
        pad_piece="<_pad>",
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory, sentencepiece_bytes: bytes) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    sources = folder / "sources"
    sources.mkdir()
    save_file(tensors(CONFIG), sources / "model.safetensors", metadata={"format": "pt"})
    (sources / "tokenizer.model").write_bytes(sentencepiece_bytes)
    (sources / "config.json").write_text(json.dumps(CONFIG))
    (sources / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": 2}))
    config = {"bos_token": "<_start>", "eos_token": "<_end>", "pad_token": "<_pad>", "add_bos_token": False}
    (sources / "tokenizer_config.json").write_text(json.dumps(config))
    (sources / "predict_tiny.yaml").write_text(yaml.safe_dump(MODEL_YAML, sort_keys=False))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return folder


@pytest.fixture
def workshop(_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "workshop"
    shutil.copytree(_template, folder)
    return Workshop(folder)


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.out)
        return data


Builder = Callable[..., Run]


@pytest.fixture
def builder(capsys: pytest.CaptureFixture[str]) -> Builder:
    """The command line, in this process."""
    from builder.cli import main

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = stop.value.code
        return Run(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command line as a program of its own."""
    command = [sys.executable, "-m", "builder.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def write_sparse_weights(path: Path, config: dict[str, Any]) -> None:
    """Float16 tensors of a TeleChat2 of this size, all zero, that take no room until they are copied."""
    position, entries = 0, []
    for name, shape in FAMILIES["telechat"].expected_tensors(config):
        end = position + 2 * math.prod(shape)
        entries.append(TensorEntry(name, "F16", shape, position, end))
        position = end
    header = write_header(entries, {"format": "pt"})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + position)
