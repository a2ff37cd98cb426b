"""Reading checkpoints: shards, dtypes, layouts, and everything that can be wrong with one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contract.faults import Fault, FaultKind
from daemon.backends.ms.checkpoint import Checkpoint
from daemon.backends.ms.kernels import Kernels
from daemon.backends.ms.weights import (
    Slot,
    Tensor,
    WeightLoader,
    WeightPlan,
    check_names,
    estimate,
)
from tests.daemon.backends.ms.tiny_telechat2 import (
    random_weights,
    write_model,
    write_safetensors,
    write_shards,
)


def nothing(done: int, total: int) -> None:
    """Progress nobody watches."""


@pytest.fixture
def matrix(kernels: Kernels) -> Iterator[int]:
    handle = kernels.new_matrix(48, 20)
    yield handle
    kernels.free_matrix(handle)


def read_back(
    kernels: Kernels, matrix: int, rows: int, cols: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    identity = np.eye(cols, dtype=np.float32)
    return kernels.matmul(matrix, identity, -(-rows // 16))[:, :rows].T


def plan_of(*entries: tuple[Tensor, dict[str, Slot]]) -> WeightPlan:
    plan = WeightPlan()
    for tensor, slots in entries:
        plan.add(tensor, slots)
    return plan


def fault_of_loading(folder: Path, plan: WeightPlan, kernels: Kernels) -> Fault:
    def load() -> None:
        loader = WeightLoader(kernels, Checkpoint(folder), plan)
        loader.load(2, nothing)
        loader.check_finite(allow=False)

    with pytest.raises(Fault) as caught:
        load()
    assert caught.value.kind is FaultKind.INVALID_MODEL
    return caught.value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_packed_rows_are_taken_apart(tmp_path: Path, kernels: Kernels, matrix: int, dtype: str) -> None:
    values = np.random.default_rng(0).integers(-9, 9, (48, 20)).astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", {"kv": values[:32], "q": values[32:]}, dtype)
    slots = {
        role: Slot(rows=16, first=16 * place, matrix=matrix, cols=20)
        for place, role in enumerate(("q", "k", "v"))
    }
    plan = plan_of((Tensor("q", ("q",)), slots), (Tensor("kv", ("k", "v"), groups=4), slots))
    seen: list[tuple[int, int]] = []
    WeightLoader(kernels, Checkpoint(tmp_path), plan).load(2, lambda done, total: seen.append((done, total)))
    key, value = values[:32].reshape(4, 2, 4, 20).transpose(1, 0, 2, 3).reshape(2, 16, 20)
    assert np.array_equal(read_back(kernels, matrix, 48, 20), np.concatenate((values[32:], key, value)))
    assert seen[-1] == (seen[-1][1], seen[-1][1])


def test_rows_longer_than_the_buffer_are_read(tmp_path: Path, kernels: Kernels) -> None:
    values = np.arange(3 * 1_200_000, dtype=np.float32).reshape(3, -1)
    write_safetensors(tmp_path / "model.safetensors", {"w": values})
    handle = kernels.new_matrix(*values.shape)
    plan = plan_of((Tensor("w", ("w",)), {"w": Slot(rows=3, matrix=handle, cols=values.shape[1])}))
    WeightLoader(kernels, Checkpoint(tmp_path), plan).load(1, nothing)
    one = np.zeros((1, values.shape[1]), np.float32)
    one[0, 1_000_000] = 1
    assert np.array_equal(kernels.matmul(handle, one, 1)[0, :3], values[:, 1_000_000])
    kernels.free_matrix(handle)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    weights = random_weights()
    write_shards(tmp_path, weights)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == weights.keys()
    assert checkpoint.total_bytes == sum(values.nbytes for values in weights.values())
    assert checkpoint.main_dtype == "float32"


def test_missing_surplus_and_misshapen_tensors_are_named(
    tmp_path: Path, kernels: Kernels, matrix: int
) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": np.ones((48, 19), np.float32)})
    slots = {"w": Slot(rows=48, matrix=matrix, cols=20)}
    fault = fault_of_loading(tmp_path, plan_of((Tensor("other", ("w",)), slots)), kernels)
    assert "lacks other" in fault.message
    assert "does not read: w" in fault_of_loading(tmp_path, plan_of(), kernels).message
    fault = fault_of_loading(tmp_path, plan_of((Tensor("w", ("w",)), slots)), kernels)
    assert "shape [48, 19], expected [48, 20]" in fault.message


def test_rotary_tables_are_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write_safetensors(tmp_path / "model.safetensors", {name: np.ones(4, np.float32)})
    check_names(Checkpoint(tmp_path), plan_of())


def test_a_network_cannot_invent_roles() -> None:
    with pytest.raises(Fault, match="roles w; there are q"):
        plan_of((Tensor("x", ("w",)), {"q": Slot(rows=1)}))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_refused(
    tmp_path: Path, kernels: Kernels, matrix: int, bad: float
) -> None:
    values = np.ones((48, 20), np.float32)
    values[40, 3] = bad
    write_safetensors(tmp_path / "model.safetensors", {"w": values})
    plan = plan_of((Tensor("w", ("w",)), {"w": Slot(rows=48, matrix=matrix, cols=20)}))
    assert (
        "w in model.safetensors holds 1 infinite or NaN" in fault_of_loading(tmp_path, plan, kernels).message
    )


def test_a_vector_with_nan_is_refused(tmp_path: Path, kernels: Kernels) -> None:
    model = kernels.new_model(1, 1, 1)
    block = kernels.new_block(model, (2, 4, 4, 0, 0, 0, 0), 1e-5, 1.0)
    write_safetensors(tmp_path / "model.safetensors", {"n": np.array([1, np.nan, 1, 1], np.float32)})
    plan = plan_of((Tensor("n", ("n",)), {"n": Slot(rows=4, block=block, size=4)}))
    assert "n in" in fault_of_loading(tmp_path, plan, kernels).message
    kernels.free_model(model)


def test_damaged_files_are_faults(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(Fault, match="neither"):
        Checkpoint(tmp_path)
    write_safetensors(path, {"w": np.ones((8, 8), np.float32)})
    whole = path.read_bytes()
    for cut in (whole[:4], whole[:40], whole[:-1], (1 << 62).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(cut)
        with pytest.raises(Fault, match="not a readable safetensors file"):
            Checkpoint(tmp_path)
    path.write_bytes(whole.replace(b'"F32"', b'"F99"'))
    with pytest.raises(Fault, match="F99"):
        Checkpoint(tmp_path)


def test_a_file_that_shrinks_while_read_is_a_fault(tmp_path: Path, kernels: Kernels, matrix: int) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": np.ones((48, 20), np.float32)})
    checkpoint = Checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    plan = plan_of((Tensor("w", ("w",)), {"w": Slot(rows=48, matrix=matrix, cols=20)}))
    with pytest.raises(Fault, match="became shorter"):
        WeightLoader(kernels, checkpoint, plan).load(1, nothing)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not a safetensors index"),
        ('{"weight_map": []}', "not a safetensors index"),
        (json.dumps({"weight_map": {"w": "../w.safetensors"}}), "not a file beside it"),
        (json.dumps({"weight_map": {"w": "gone.safetensors"}}), "lacks the weight file gone"),
    ],
)
def test_damaged_indexes_are_faults(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Fault, match=message):
        Checkpoint(tmp_path)


def test_memory_is_known_before_loading(tmp_path: Path) -> None:
    write_model(tmp_path)
    whole, half = estimate(tmp_path), estimate(tmp_path, "bfloat16")
    elements = sum(values.size for values in random_weights().values())
    assert whole.weight_bytes == 4 * elements
    assert 2 * elements < half.weight_bytes < 2.1 * elements
    assert whole.kv_bytes_per_block == 3 * 2 * (8 + 16) * 16 * 4
    assert half.kv_bytes_per_block == 3 * 2 * (8 + 16) * 16 * 2
    assert estimate(tmp_path, kv_dtype="float16").kv_bytes_per_block == 3 * 2 * (8 + 16) * 16 * 2
    assert estimate(tmp_path, kv_dtype="int8").kv_bytes_per_block == 3 * 2 * (8 + 16 + 2 * 4) * 16
