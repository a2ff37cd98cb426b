"""Merging and sharing among ranks: by strategy files as MindSpore does it, and by the rules of a family."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from builder.checkpoints.layouts.families import LAYOUTS
from builder.checkpoints.layouts.packing import Facts
from builder.checkpoints.ranks import join_by_strategy, join_roles, share_by_strategy, share_roles, split_axis
from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.strategy import Placement, Strategy, read_strategy
from builder.checkpoints.views import View
from builder.checkpoints.wire import encode_bytes, encode_number
from builder.checkpoints.writers.ckpt_file import ckpt_bytes
from builder.checkpoints.writers.streams import NamedView, Stream
from contract.faults import Fault
from tests.builder.checkpoints.arrays import Arrays, array_of, arrays_of, same
from tests.builder.checkpoints.layouts.test_families import FACTS, random_arrays, views_of


@dataclass(frozen=True)
class Spread:
    """How a strategy file describes one parameter."""

    grid: tuple[int, ...]
    maps: tuple[int, ...]
    optimizer: tuple[int, int] = (0, 0)
    """Step and size."""


@dataclass(frozen=True)
class Plan:
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    stage: int = 0

    def encoded(self) -> bytes:
        """The strategy file."""
        inner = encode_number(1, self.stage)
        content = encode_number(1, 1) + encode_bytes(2, encode_bytes(1, b"node") + encode_bytes(2, inner))
        return content + b"".join(
            encode_bytes(3, encode_bytes(1, name.encode()) + encode_bytes(2, _layout(spread)))
            for name, spread in self.spreads.items()
        )


def _dims(number: int, values: Sequence[int]) -> bytes:
    return encode_bytes(number, b"".join(encode_number(1, value) for value in values))


def _layout(spread: Spread) -> bytes:
    content = _dims(1, spread.grid) + _dims(2, spread.maps) + _dims(3, ()) + encode_number(5, 0)
    return content + encode_number(6, spread.optimizer[0]) + encode_number(7, spread.optimizer[1])


SHAPES = {"columns": (8, 12), "rows": (16, 6), "norm": (8,), "cube": (4, 4, 8), "table": (24, 4)}
FOUR = Plan(
    {
        "columns": Spread((2, 2), (0, -1)),
        "rows": Spread((2, 2), (-1, 0)),
        "norm": Spread((4,), (-1,)),
        "cube": Spread((2, 2), (-1, 1, 0)),
        "table": Spread((2, 2), (1, 0), (0, 0)),
    }
)
TWO = Plan(
    {
        "columns": Spread((2,), (0, -1)),
        "rows": Spread((2,), (-1, 0)),
        "norm": Spread((2,), (0,)),
        "cube": Spread((2,), (0, -1, -1)),
        "table": Spread((2,), (0, -1)),
    }
)
OPTIMIZER = Plan(
    {
        "columns": Spread((2, 2), (0, -1), (2, 2)),
        "rows": Spread((4,), (-1, -1), (1, 4)),
        "norm": Spread((4,), (-1,), (1, 4)),
        "cube": Spread((2, 2), (-1, 0, -1), (2, -1)),
        "table": Spread((2, 2), (1, -1), (1, 2)),
    }
)
PLANS = {"four": FOUR, "two": TWO, "optimizer": OPTIMIZER}
MOVES = [(None, "four"), (None, "two"), (None, "optimizer"), ("four", None), ("optimizer", None)]
FAMILY_MOVE = (None, "family")
MOVES += [("four", "two"), ("two", "four"), ("four", "optimizer"), ("optimizer", "two")]

_TRANSFORM = """
import json, os, sys
import numpy as np
import mindspore as ms
folder, moves = sys.argv[1], json.loads(sys.argv[2])
arrays = np.load(f"{folder}/arrays.npz")
os.makedirs(f"{folder}/None/rank_0")
listed = [{"name": name, "data": ms.Tensor(arrays[name])} for name in arrays]
ms.save_checkpoint(listed, f"{folder}/None/rank_0/c_0.ckpt")
for source, target in moves:
    files = [f"{folder}/{name}.strategy" if name else None for name in (source, target)]
    origin = "None" if source is None else f"None-{source}"
    ms.transform_checkpoints(f"{folder}/{origin}", f"{folder}/{source}-{target}", "c_", *files)
"""


@pytest.fixture(scope="module")
def arrays(family_arrays: Arrays) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    shaped = {name: rng.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
    return {**shaped, **family_arrays}


@pytest.fixture(scope="module")
def family_arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[Any]]:
    """A small model by the names of mindformers 1.x."""
    layouts = LAYOUTS["telechat"]
    views = views_of(random_arrays("telechat"), tmp_path_factory.mktemp("family"))
    packed = layouts.r1.pack(layouts.hf.unpack(views, FACTS), FACTS)
    return {name: array_of(view) for name, view in packed.items()}


def family_plan(arrays: Arrays) -> Plan:
    """Two ranks of it: what the family's rules say, as a strategy file says it."""
    spreads = {}
    for name, array in arrays.items():
        found = LAYOUTS["telechat"].r1.find(name)
        assert found is not None
        axis = split_axis(found[1])
        spreads[name] = Spread((2,), tuple(0 if index == axis else -1 for index in range(array.ndim)))
    return Plan(spreads)


@pytest.fixture(scope="module")
def transformed(arrays: Arrays, family_arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which MindSpore made every move."""
    pytest.importorskip("mindspore", reason="MindSpore is not installed")
    folder = tmp_path_factory.mktemp("ranks")
    np.savez(folder / "arrays.npz", **arrays)
    for name, plan in {**PLANS, "family": family_plan(family_arrays)}.items():
        (folder / f"{name}.strategy").write_bytes(plan.encoded())
    subprocess.run(
        [sys.executable, "-c", _TRANSFORM, str(folder), json.dumps([*MOVES, FAMILY_MOVE])],
        check=True,
        timeout=100,
    )
    return folder


def _rank_tables(folder: Path) -> list[Mapping[str, View]]:
    count = len(list(folder.glob("rank_*")))
    return [read_tensor_file(next((folder / f"rank_{rank}").glob("*.ckpt"))).tensors for rank in range(count)]


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_agrees_with_mindspore(source: str | None, target: str | None, transformed: Path) -> None:
    ranks = _rank_tables(transformed / ("None" if source is None else f"None-{source}"))
    whole = ranks[0]
    if source is not None:
        whole = join_by_strategy(ranks, read_strategy(transformed / f"{source}.strategy"))
    tables: Sequence[Mapping[str, View]] = [whole]
    if target is not None:
        tables = share_by_strategy(whole, read_strategy(transformed / f"{target}.strategy"))
    expected = _rank_tables(transformed / f"{source}-{target}")
    assert len(tables) == len(expected)
    for ours, theirs in zip(tables, expected, strict=True):
        assert same(
            {name: array_of(view) for name, view in ours.items()},
            {name: array_of(view) for name, view in theirs.items()},
        )


def test_a_familys_rules_agree_with_mindspore(transformed: Path) -> None:
    whole = _rank_tables(transformed / "None")[0]
    layout = LAYOUTS["telechat"].r1
    roles = layout.unpack({name: view for name, view in whole.items() if name not in SHAPES}, FACTS)
    shared = share_roles(roles, 2, FACTS, whole_embedding=False)
    expected = _rank_tables(transformed / "None-family")
    for ours, theirs in zip(shared, expected, strict=True):
        table = {name: array_of(view) for name, view in layout.pack(ours, FACTS.of_rank(2)).items()}
        assert same(table, {name: array_of(theirs[name]) for name in table})


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, tuple[int, ...]]:
    """A grid, and a shape that it divides."""
    grid = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    free = draw(st.permutations(range(len(grid))))
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        take = draw(st.integers(0, min(2, len(free))))
        axes.append(tuple(free[:take]))
        free = free[take:]
    placement = Placement(grid, tuple(axes))
    replicas = placement.ranks // int(np.prod(placement.shards()))
    divisors = [size for size in range(2, replicas + 1) if replicas % size == 0]
    placement = Placement(grid, tuple(axes), draw(st.sampled_from([0, *divisors])))
    return placement, tuple(count * draw(st.integers(1, 2)) for count in placement.shards())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spread=placements())
def test_sharing_and_joining_by_any_placement_is_the_same_bits(
    spread: tuple[Placement, tuple[int, ...]], tmp_path: Path
) -> None:
    placement, shape = spread
    array = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    strategy = Strategy({0: {"w": placement}})
    shared = share_by_strategy(views_of({"w": array}, tmp_path), strategy)
    assert len(shared) == placement.ranks
    pieces = {placement.shard_of(rank) for rank in range(placement.ranks)}
    assert len(pieces) == np.prod(placement.shards())
    assert same({"w": array_of(join_by_strategy(shared, strategy)["w"])}, {"w": array})


def test_pipeline_stages_hold_their_own_parameters(arrays: Arrays, tmp_path: Path) -> None:
    first = Plan({"columns": Spread((2,), (0, -1))}, stage=0)
    second = Plan({"rows": Spread((2,), (-1, 0))}, stage=1)
    for rank, plan in enumerate((first, first, second, second)):
        (tmp_path / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(plan.encoded())
    strategy = read_strategy(tmp_path)
    assert strategy.ranks == 4
    views = views_of({name: arrays[name] for name in ("columns", "rows")}, tmp_path)
    shared = share_by_strategy(views, strategy)
    assert [sorted(table) for table in shared] == [["columns"], ["columns"], ["rows"], ["rows"]]
    joined = join_by_strategy(shared, strategy)
    assert all(np.array_equal(array_of(joined[name]), arrays[name]) for name in views)
    merged = tmp_path / "merged"
    merged.write_bytes(
        Plan({"0-columns": first.spreads["columns"], "1-rows": second.spreads["rows"]}).encoded()
    )
    assert read_strategy(merged) == strategy


@pytest.mark.parametrize("family", ["telechat", "telechat_moe", "llama", "qwen2"])
@pytest.mark.parametrize("concatenated", [False, True])
def test_ranks_of_a_family_hold_their_heads(family: str, concatenated: bool, tmp_path: Path) -> None:
    arrays, layouts = random_arrays(family), LAYOUTS[family]
    layout = layouts.r1_qkv if concatenated else layouts.r1
    roles = layouts.hf.unpack(views_of(arrays, tmp_path), FACTS)
    facts = FACTS.of_rank(2)
    tables = [layout.pack(held, facts) for held in share_roles(roles, 2, FACTS, whole_embedding=True)]
    stored = []
    for rank, table in enumerate(tables):
        path = tmp_path / f"{rank}.ckpt"
        path.write_bytes(b"".join(ckpt_bytes([NamedView(*item) for item in table.items()], Stream())))
        stored.append(layout.unpack(read_tensor_file(path).tensors, facts))
        assert arrays_of(path)["model.tok_embeddings.embedding_weight"].shape[0] == FACTS.vocab
    joined = layouts.hf.pack(join_roles(stored, FACTS), FACTS)
    assert same({name: array_of(view) for name, view in joined.items()}, arrays)


def test_a_ranks_concatenation_is_of_its_own_heads(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("llama"), LAYOUTS["llama"]
    roles = layouts.hf.unpack(views_of(arrays, tmp_path), FACTS)
    second = layouts.r1_qkv.pack(share_roles(roles, 2, FACTS, whole_embedding=True)[1], FACTS.of_rank(2))
    prefix = "model.layers.0.self_attn."
    halves = [np.split(arrays[f"{prefix}{part}_proj.weight"], 2)[1] for part in "qkv"]
    assert np.array_equal(array_of(second["model.layers.0.attention.w_qkv.weight"]), np.concatenate(halves))
    down = arrays["model.layers.0.mlp.down_proj.weight"]
    assert np.array_equal(
        array_of(second["model.layers.0.feed_forward.w2.weight"]), np.split(down, 2, axis=1)[1]
    )


def test_what_cannot_be_shared_evenly_is_a_fault(tmp_path: Path) -> None:
    roles = LAYOUTS["llama"].hf.unpack(views_of(random_arrays("llama"), tmp_path), FACTS)
    with pytest.raises(Fault, match="2 key/value heads cannot be shared among 4 ranks"):
        share_roles(roles, 4, FACTS, whole_embedding=True)
    roles = {role: view for role, view in roles.items() if role.part == "embed"}
    with pytest.raises(Fault, match=r"embed of shape \[22, 10\] cannot be split into 4"):
        share_roles(roles, 4, Facts(), whole_embedding=False)


@pytest.mark.parametrize("whole_embedding", [False, True])
def test_the_head_tells_whether_the_embedding_is_whole(whole_embedding: bool, tmp_path: Path) -> None:
    arrays = random_arrays("llama")
    hf = LAYOUTS["llama"].hf
    shared = share_roles(hf.unpack(views_of(arrays, tmp_path), FACTS), 2, FACTS, whole_embedding)
    joined = hf.pack(join_roles(shared, Facts()), Facts())
    assert np.array_equal(array_of(joined["model.embed_tokens.weight"]), arrays["model.embed_tokens.weight"])
    headless = [{role: view for role, view in held.items() if role.part != "head"} for held in shared]
    with pytest.raises(Fault, match="no head that tells the size of the vocabulary"):
        join_roles(headless, Facts())


def test_ranks_that_do_not_belong_together_are_a_fault(tmp_path: Path) -> None:
    arrays = random_arrays("llama")
    hf = LAYOUTS["llama"].hf
    whole = hf.unpack(views_of(arrays, tmp_path), FACTS)
    other = {role: view for role, view in whole.items() if role.part != "norm"}
    with pytest.raises(Fault, match="rank 1 and rank 0 hold different tensors: norm"):
        join_roles([whole, other], FACTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00", "is not a protobuf message"),
        (b"", "says nothing of any parameter"),
        (Plan({"w": Spread((2,), (3,))}).encoded(), "maps a parameter to an axis"),
        (Plan({"w": Spread((0,), (0,))}).encoded(), "an impossible grid"),
        (Plan({"w": Spread((2, 2), (0,), (1, 3))}).encoded(), "more optimizers than there are"),
        (Plan({"w": Spread((2,), (0,))}).encoded()[:-3], "is cut short"),
    ],
)
def test_a_broken_strategy_is_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "strategy.ckpt"
    path.write_bytes(content)
    with pytest.raises(Fault, match=message) as caught:
        read_strategy(path)
    assert str(path) in caught.value.message


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_strategy_does_more_than_be_refused(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(FOUR.encoded())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + 8] = data.draw(st.binary(max_size=12))
    path = tmp_path / "strategy.ckpt"
    path.write_bytes(bytes(content))
    try:
        strategy = read_strategy(path)
    except Fault:
        return
    assert strategy.ranks > 0


def test_a_strategy_of_more_ranks_than_there_are_is_a_fault(arrays: Arrays, tmp_path: Path) -> None:
    strategy = Strategy({0: {"columns": Placement((4,), ((0,), ()))}})
    with pytest.raises(Fault, match="the strategy is of 4 ranks, the checkpoint of 1"):
        join_by_strategy([views_of(arrays, tmp_path)], strategy)
