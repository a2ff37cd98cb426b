from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from builder.checkpoints.arrangements import Cast, Replicas, Transposed, cut, stacked
from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.views import Reshaped, Run, View, gathered
from contract.faults import Fault
from tests.builder.checkpoints.arrays import array_of, write_torch_zip

Pair = tuple[View, NDArray[Any]]


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 8), "b": (6, 8), "stack": (4, 3, 5), "flat": (12,), "twin": (6, 8)}
    arrays = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    arrays["twin"] = arrays["a"]
    path = write_torch_zip(tmp_path_factory.mktemp("views") / "a.bin", arrays)
    views = read_tensor_file(path).tensors
    return {name: (views[name], array) for name, array in arrays.items()}


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Kinds of change with an axis and an amount that is made to fit."""
    kinds = st.sampled_from(("cut", "stack", "swap", "shuffle", "reshape"))
    return draw(st.lists(st.tuples(kinds, st.integers(0, 3), st.integers(0, 100)), max_size=5))


def changed(pair: Pair, change: tuple[str, int, int]) -> Pair:
    """One change on a view and, by numpy, on its array."""
    (view, array), (kind, axis, amount) = pair, change
    axis %= array.ndim
    if kind == "cut":
        first = amount % array.shape[axis]
        count = 1 + amount % (array.shape[axis] - first)
        return cut(view, axis, first, count), np.take(array, range(first, first + count), axis)
    if kind == "stack":
        return stacked([view, view], axis), np.concatenate([array, array], axis)
    if kind == "swap" and array.ndim > 1:
        return Transposed(view), np.swapaxes(array, -1, -2)
    if kind == "shuffle":
        order = np.random.default_rng(amount).permutation(array.shape[0])
        inner = view.rows // array.shape[0]
        return gathered(view.shape, (Run(view, int(row) * inner, inner) for row in order)), array[order]
    if kind == "reshape":
        return Reshaped(view, (1, *array.shape)), array[None]
    return pair


@given(name=st.sampled_from(("a", "stack", "flat")), steps=changes(), buffer_bytes=st.integers(1, 200))
def test_any_chain_of_changes_is_what_numpy_makes(
    tensors: dict[str, Pair], name: str, steps: list[tuple[str, int, int]], buffer_bytes: int
) -> None:
    pair = tensors[name]
    for step in steps:
        pair = changed(pair, step)
    view, expected = pair
    assert view.shape == expected.shape
    assert array_of(view, buffer_bytes).tobytes() == expected.tobytes()


def test_gathering_all_rows_in_order_is_the_tensor_itself(tensors: dict[str, Pair]) -> None:
    view, _ = tensors["a"]
    halves = [cut(view, 0, 0, 3), cut(view, 0, 3, 3)]
    assert stacked(halves) is view


def test_a_cast_rounds_as_numpy_does(tensors: dict[str, Pair]) -> None:
    view, array = tensors["stack"]
    assert array_of(Cast(view, "F16")).tobytes() == array.astype("<f2").tobytes()


def test_a_part_of_long_rows_is_read_alone(tensors: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    view, array = tensors["a"]
    monkeypatch.setattr("builder.checkpoints.arrangements._WORTH_A_READ", 4)
    assert array_of(cut(view, 1, 2, 3)).tobytes() == array[:, 2:5].tobytes()


def test_replicas_are_read_once_they_agree(tensors: dict[str, Pair]) -> None:
    view, array = tensors["a"]
    twin, other = tensors["twin"][0], tensors["b"][0]
    assert array_of(Replicas("a", (view, twin))).tobytes() == array.tobytes()
    with pytest.raises(Fault, match="a should be the same on every rank"):
        array_of(Replicas("a", (view, other)))


def test_a_file_that_became_shorter_is_a_fault(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "a.bin", {"w": np.ones((64, 64), "f4")})
    view = read_tensor_file(path).tensors["w"]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(Fault, match="became shorter"):
        array_of(view)
