"""``builder convert`` with MindSpore's strategy files on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.builder.checkpoints.arrays import arrays_of, same
from tests.builder.checkpoints.test_ranks import FOUR, SHAPES, TWO, Plan, Spread
from tests.builder.conftest import Builder


def test_one_to_four_to_two_to_one(builder: Builder, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays = {name: rng.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
    arrays["global_step"] = np.array([7], "<i8")
    save_file(arrays, tmp_path / "whole.safetensors")
    (tmp_path / "four").write_bytes(FOUR.encoded())
    (tmp_path / "two").write_bytes(TWO.encoded())
    steps = [
        ("whole.safetensors", "ranks4", "--target-strategy", tmp_path / "four"),
        ("ranks4", "ranks2", "--strategy", tmp_path / "four", "--target-strategy", tmp_path / "two"),
        ("ranks2", "back.ckpt", "--strategy", tmp_path / "two"),
    ]
    for source, target, *options in steps:
        run = builder("convert", tmp_path / source, tmp_path / target, *options)
        assert run.code == 0, run.err
    assert sorted(path.name for path in (tmp_path / "ranks4").glob("rank_*/*")) == [
        f"checkpoint_{rank}.ckpt" for rank in range(4)
    ]
    assert arrays_of(tmp_path / "ranks4/rank_3/checkpoint_3.ckpt")["cube"].shape == (4, 2, 4)
    assert same(arrays_of(tmp_path / "back.ckpt"), arrays)


def test_a_strategy_that_does_not_fit_is_a_fault(builder: Builder, tmp_path: Path) -> None:
    save_file({"w": np.ones((3, 4), "f4")}, tmp_path / "w.safetensors")
    strategies = {
        "odd": ("w of shape [3, 4] cannot be split into 2 along axis 0", {"w": Spread((2,), (0, -1))}),
        "other": ("names 1 parameters that are not there: v", {"v": Spread((2,), (0, -1))}),
        "flat": ("w of shape [3, 4] cannot be split into 2 along axis 2", {"w": Spread((2,), (-1, -1, 0))}),
    }
    for name, (message, spreads) in strategies.items():
        (tmp_path / name).write_bytes(Plan(spreads).encoded())
        source, target = tmp_path / "w.safetensors", tmp_path / "out"
        run = builder("convert", source, target, "--target-strategy", tmp_path / name)
        assert run.code == 2, run.err
        assert message in run.err
        assert not target.exists()
