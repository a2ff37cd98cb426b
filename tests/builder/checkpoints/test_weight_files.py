"""Every way in which a checkpoint can be incomplete or of another model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from builder.checkpoints.weight_files import INDEX_NAME, Weights, check_tensors, find_weights
from builder.families import FAMILIES
from tests.builder.conftest import CONFIG, tensors

TELECHAT = FAMILIES["telechat"]


def shards(folder: Path, count: int, index: bool = True) -> dict[str, str]:
    names = list(tensors(CONFIG).items())
    places: dict[str, str] = {}
    for number in range(count):
        part = dict(names[number::count])
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        save_file(part, folder / file)
        places.update(dict.fromkeys(part, file))
    if index:
        (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def messages(weights: Weights) -> str:
    return "\n".join(map(str, weights.problems))


@pytest.mark.parametrize("index", [True, False])
def test_shards_with_and_without_index(tmp_path: Path, index: bool) -> None:
    shards(tmp_path, 3, index)
    weights = find_weights(tmp_path)
    assert not weights.problems
    assert [file.name for file in weights.files] == [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    assert not check_tensors(weights, TELECHAT, CONFIG)
    assert weights.parameters == sum(array.size for array in tensors(CONFIG).values())


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    shards(tmp_path, 3, index)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: shard is missing" in messages(find_weights(tmp_path))


def test_one_file_by_any_name_becomes_the_plain_name(tmp_path: Path) -> None:
    save_file(tensors(CONFIG), tmp_path / "whatever.safetensors")
    assert [file.name for file in find_weights(tmp_path).files] == ["model.safetensors"]
    assert [file.name for file in find_weights(tmp_path / "whatever.safetensors").files] == [
        "model.safetensors"
    ]


def test_ambiguous_folders(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors")
    save_file({"a": np.zeros(1)}, tmp_path / "y.safetensors")
    assert "several checkpoints: x.safetensors, y.safetensors" in messages(find_weights(tmp_path))
    (tmp_path / "x.safetensors").unlink()
    (tmp_path / "y.safetensors").rename(tmp_path / "model.safetensors")
    shards(tmp_path, 2, index=False)
    assert "holds model.safetensors and shards" in messages(find_weights(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    save_file({"a": np.zeros(1)}, tmp_path / "model-00001-of-00009.safetensors")
    assert "several sets of shards" in messages(find_weights(tmp_path))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert "holds no *.safetensors" in messages(find_weights(tmp_path))
    assert "does not exist" in messages(find_weights(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}']
)
def test_a_bad_index(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_NAME).write_text(content)
    assert INDEX_NAME in messages(find_weights(tmp_path))


def test_an_index_that_lies(tmp_path: Path) -> None:
    places = shards(tmp_path, 2)
    places["lm_head.weight"], places["ghost"] = places["transformer.ln_f.weight"], places["lm_head.weight"]
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": places}))
    assert "not in the file it names" in messages(find_weights(tmp_path))


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    shards(tmp_path, 2, index=False)
    save_file(tensors(CONFIG), tmp_path / "model-00002-of-00002.safetensors")
    assert "is also in model-00001-of-00002.safetensors" in messages(find_weights(tmp_path))


def test_missing_surplus_and_misshapen_tensors_at_once(tmp_path: Path) -> None:
    found = tensors(CONFIG)
    del found["lm_head.weight"]
    found["transformer.h.2.mlp.up_proj.weight"] = np.zeros((2, 2), "float16")
    found["transformer.ln_f.weight"] = np.zeros(17, "float16")
    found["transformer.h.0.self_attention.rotary_emb.inv_freq"] = np.zeros(2, "float32")
    save_file(found, tmp_path / "model.safetensors")
    problems = "\n".join(map(str, check_tensors(find_weights(tmp_path), TELECHAT, CONFIG)))
    assert "1 tensors are missing: lm_head.weight" in problems
    assert "1 tensors are not expected: transformer.h.2.mlp.up_proj.weight" in problems
    assert "transformer.ln_f.weight: has shape [17], the config says [16]" in problems


def test_a_tied_head_needs_no_tensor(tmp_path: Path) -> None:
    found = tensors(CONFIG)
    del found["lm_head.weight"]
    save_file(found, tmp_path / "model.safetensors")
    assert not check_tensors(find_weights(tmp_path), TELECHAT, {**CONFIG, "tie_word_embeddings": True})
