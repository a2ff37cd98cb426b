"""The benchmark's model and prompts: the same for every engine, and as the documents state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from benchmarks.prompts import Prompts, agreement
from benchmarks.synthetic import (
    BENCHMARK,
    FIRST_WORD,
    TRIAL,
    make_folder,
    random_weights,
    tensor_shapes,
)
from tests.benchmarks.cases import TINY


def test_the_model_has_the_sizes_that_the_documents_state() -> None:
    assert BENCHMARK.layer_parameters == 357_826_560
    assert BENCHMARK.parameters == 386_498_560
    assert BENCHMARK.head_dim == 64


def test_the_sizes_are_those_of_the_tensors() -> None:
    for shape in (BENCHMARK, TRIAL, TINY):
        matrices = [size for size in tensor_shapes(shape.to_config()).values() if len(size) == 2]
        assert sum(rows * columns for rows, columns in matrices) == shape.parameters


def test_the_folder_is_made_once_and_complete(tmp_path: Path) -> None:
    folder = make_folder(TINY.name, TINY.to_config(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert {name: values.shape for name, values in weights.items()} == tensor_shapes(TINY.to_config())
    assert all(values.dtype == np.float32 for values in weights.values())
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "qwen2"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab
    assert tokenizer.decode(tokenizer.encode("bada kilo").ids) == "bada kilo"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_folder(TINY.name, TINY.to_config(), tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [folder]


def test_another_configuration_of_the_same_name_is_made_again(tmp_path: Path) -> None:
    make_folder("model", TINY.to_config(), tmp_path)
    changed = {**TINY.to_config(), "num_hidden_layers": 1}
    folder = make_folder("model", changed, tmp_path)
    assert set(load_file(folder / "model.safetensors")) == set(tensor_shapes(changed))


def test_the_weights_are_the_same_everywhere() -> None:
    first, second = random_weights(TINY.to_config()), random_weights(TINY.to_config())
    assert all(np.array_equal(first[name], second[name]) for name in first)
    matrix = first["model.layers.0.mlp.down_proj.weight"]
    assert float(matrix.std()) == pytest.approx(24**-0.5, rel=0.2)


def test_no_answer_has_half_characters() -> None:
    table_of_ids = random_weights(TINY.to_config())["model.embed_tokens.weight"]
    assert float(abs(table_of_ids[:FIRST_WORD]).max()) < 0.01 * float(table_of_ids[FIRST_WORD:].std()) * 10


def test_prompts_are_unique_and_the_same_for_every_engine() -> None:
    first, second = Prompts(800, 7), Prompts(800, 7)
    many = first.many(20, 32)
    assert many == second.many(20, 32)
    assert len({tuple(prompt[:16]) for prompt in many}) == 20
    assert all(300 <= token < 800 for prompt in many for token in prompt)


def test_agreement_counts_to_the_first_difference() -> None:
    assert agreement([["a", "b", "c"], ["d"]], [["a", "x", "c"], ["d"]]) == (2, 4)
    assert agreement([["a", "b"]], [["a"]]) == (1, 2)
