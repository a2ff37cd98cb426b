"""Packed weights in files: mapped with the same bits, packed anew when anything differs, never in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from daemon.app import _ms_options
from daemon.backends.ms.backend import MsBackend
from daemon.backends.ms.kernels import NORM, FloatArray, KernelError, Kernels, pointer
from daemon.backends.ms.packed_cache import PackedCache, PackedWeights
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.weights import Slot, Tensor, WeightPlan
from daemon.settings import MsOptions
from tests.daemon.backends.ms.test_backend import loader, spec
from tests.daemon.backends.ms.tiny_telechat2 import random_weights, write_model
from tests.fakes_engine import FakeRunner, silent

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
ROWS, COLS = 40, 64


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "repository" / "tiny" / "1")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def run(
    model: Path,
    cache: Path | None,
    dtype: str = "auto",
    *,
    head_dtype: str = "auto",
    not_finite: bool = False,
) -> tuple[FloatArray, bool]:
    """Logits, and whether the weights were mapped."""
    options = RunnerOptions(
        num_blocks=8,
        max_rows=32,
        max_logit_rows=32,
        threads=2,
        dtype=dtype,
        head_dtype=head_dtype,
        packed_cache=cache,
        allow_nonfinite=not_finite,
    )
    runner = ModelRunner.load(model, options=options, progress=silent)
    try:
        logits = runner.execute([Segment(range(20), 0, range(2), 0, *runner.rope_for(20))]).copy()
        assert runner.mapped_bytes in (0, runner.weight_bytes)
        return logits, runner.mapped_bytes > 0
    finally:
        runner.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_mapped_weights_give_the_same_bits(model: Path, cache: Path, dtype: str) -> None:
    expected, _ = run(model, None, dtype)
    first, mapped_at_first = run(model, cache, dtype)
    again, mapped = run(model, cache, dtype)
    assert (mapped_at_first, mapped) == (False, True)
    assert np.array_equal(first, expected)
    assert np.array_equal(again, expected)


def touch_weights(model: Path) -> None:
    os.utime(model / "model.safetensors", (1, 1))


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / name
        path.write_text((path.read_text("utf-8") if path.exists() else "") + text, "utf-8")

    return change


@pytest.mark.parametrize(
    "change",
    [
        touch_weights,
        append("config.json", "\n"),
        append("telechat2.py", "# \n"),
        append("manifest.json", "{}"),
    ],
    ids=["weights", "config", "network", "manifest"],
)
def test_another_model_is_another_key(model: Path, cache: Path, change: Callable[[Path], None]) -> None:
    run(model, cache)
    before = set(cache.glob("*.packed"))
    change(model)
    _, mapped = run(model, cache)
    assert not mapped
    assert len(set(cache.glob("*.packed")) - before) == 1


def test_another_type_is_another_key_and_two_files_are_kept(model: Path, cache: Path) -> None:
    for dtype in ("float32", "int8", "int4"):
        assert not run(model, cache, dtype)[1]
    assert len(list(cache.glob("*.packed"))) == 2
    assert run(model, cache, "int8")[1]
    assert not run(model, cache, "int8", head_dtype="stored")[1]
    assert not run(model, cache, "float32")[1]


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path, cache: Path) -> None:
    weights = random_weights()
    weights["transformer.h.0.mlp.up_proj.weight"][3, 5] = np.inf
    run(write_model(tmp_path / "model" / "1", weights), cache, not_finite=True)
    assert not cache.exists()


def test_a_folder_that_cannot_be_written_is_a_warning(
    model: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file")
    _, mapped = run(model, cache)
    assert not mapped
    assert f"the packed weights cannot be kept in {cache}" in caplog.text


class Toy:
    """A matrix and a vector: filled, or empty."""

    def __init__(self, kernels: Kernels, folder: Path, *, key: str = "key", seed: int | None = None) -> None:
        self.kernels = kernels
        self.matrix = kernels.new_matrix(ROWS, COLS)
        self.model = kernels.new_model(16, 16, 1)
        self.block = kernels.new_block(self.model, (3, COLS, ROWS), 1e-5, 1.0)
        plan = WeightPlan()
        plan.add(Tensor("w", ("w",)), {"w": Slot(ROWS, matrix=self.matrix, cols=COLS)})
        plan.add(Tensor("n", ("n",)), {"n": Slot(COLS, block=self.block, vector=NORM, size=COLS)})
        self.packed = PackedWeights(kernels, (self.matrix,), plan)
        self.cache = PackedCache(folder, "toy-", key, self.packed)
        if seed is not None:
            values = np.random.default_rng(seed).standard_normal((ROWS + 1, COLS)).astype(np.float32)
            kernels.pack(self.matrix, (0, 0, ROWS), pointer(values), "float32")
            kernels.set_vector(self.block, NORM, values[ROWS], size=COLS)

    @property
    def content(self) -> tuple[bytes, bytes]:
        return bytes(self.kernels.matrix_data(self.matrix)), self.packed.read_vectors()

    def close(self) -> None:
        self.kernels.free_matrix(self.matrix)
        self.kernels.free_model(self.model)


MakeToy = Callable[..., Toy]


@pytest.fixture
def toy(cache: Path) -> Iterator[MakeToy]:
    made: list[Toy] = []

    def make(**wanted: object) -> Toy:
        made.append(Toy(Kernels(), cache, **wanted))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_file_holds_every_byte(toy: MakeToy) -> None:
    full, empty = toy(seed=1), toy()
    assert full.packed.arrangement == empty.packed.arrangement, "whatever the handles"
    full.cache.save()
    assert empty.cache.load()
    assert empty.content == full.content
    values = np.zeros((1, COLS), np.float32)
    with pytest.raises(KernelError, match="read only"):
        empty.kernels.pack(empty.matrix, (0, 0, 1), pointer(values), "float32")


def test_a_removed_file_stays_mapped(toy: MakeToy, cache: Path) -> None:
    full, empty = toy(seed=1), toy()
    full.cache.save()
    assert empty.cache.load()
    shutil.rmtree(cache)
    assert empty.content == full.content


def cut(data: bytearray) -> bytes:
    return bytes(data[:-1])


def flip(at: int) -> Callable[[bytearray], bytes]:
    def change(data: bytearray) -> bytes:
        data[at] ^= 1
        return bytes(data)

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "bytes, expected"),
        (lambda data: data + b"x", "bytes, expected"),
        (lambda _: b"", "has 0 bytes"),
        (lambda data: os.urandom(len(data)), "beginning is damaged"),
        (flip(0), "beginning is damaged"),
        (flip(60), "beginning is damaged"),
        (flip(250), "vectors are damaged"),
    ],
)
def test_a_damaged_file_is_told_and_replaced(
    toy: MakeToy, caplog: pytest.LogCaptureFixture, damage: Callable[[bytearray], bytes], reason: str
) -> None:
    full, empty = toy(seed=1), toy()
    full.cache.save()
    path = full.cache.path
    path.write_bytes(damage(bytearray(path.read_bytes())))
    assert not empty.cache.load()
    assert reason in caplog.text
    assert len(caplog.records) == 1
    full.cache.save()
    assert empty.cache.load()
    assert empty.content == full.content


@pytest.mark.parametrize(
    "interruption", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_an_interrupted_writer_leaves_nothing(
    toy: MakeToy, cache: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def fail(_: int) -> None:
        raise interruption

    monkeypatch.setattr(os, "fsync", fail)
    try:
        toy(seed=1).cache.save()
    except KeyboardInterrupt:
        assert isinstance(interruption, KeyboardInterrupt)
    assert list(cache.iterdir()) == []


def test_what_killed_writers_left_is_removed_and_what_is_written_is_not(toy: MakeToy, cache: Path) -> None:
    cache.mkdir()
    left, written, foreign = (cache / name for name in ("toy-1.part", "toy-2.part", "other-1.part"))
    for path in (left, written, foreign):
        path.write_bytes(b"half")
    with written.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        toy(seed=1).cache.save()
    assert {path.suffix: path for path in cache.iterdir() if path.name.startswith("toy-")}.keys() == {
        ".part",
        ".packed",
    }
    assert not left.exists()
    assert written.exists()
    assert foreign.exists()


def test_the_oldest_files_of_a_model_go(toy: MakeToy, cache: Path) -> None:
    toys = [toy(seed=1, key=f"key{number}") for number in range(4)]
    for age, one in enumerate(toys[:3]):
        one.cache.save()
        os.utime(one.cache.path, (1000 + age, 1000 + age))
    (cache / "other-key.packed").write_bytes(b"of another model")
    assert toys[1].cache.load(), "which makes it the latest used"
    toys[3].cache.save()
    assert {path.name for path in cache.iterdir()} == {
        "other-key.packed",
        toys[1].cache.path.name,
        toys[3].cache.path.name,
    }


def test_loads_at_the_same_time_find_whole_files_only(toy: MakeToy, cache: Path) -> None:
    writers, readers = [toy(seed=1) for _ in range(4)], [toy() for _ in range(40)]
    writers[0].cache.save()
    with ThreadPoolExecutor(8) as pool:
        saved = [pool.submit(writer.cache.save) for writer in writers for _ in range(5)]
        assert all(pool.map(lambda one: one.cache.load(), readers))
        for one in saved:
            one.result()
    assert {one.content for one in readers} == {writers[0].content}
    assert [path.suffix for path in cache.iterdir()] == [".packed"]


async def test_mapped_weights_count_as_taken(model: Path) -> None:
    runner = FakeRunner(num_blocks=64, max_rows=16, max_logit_rows=16)
    plain = await MsBackend(loader([], runner)).load(spec(model), silent)
    runner.mapped_bytes = 1000
    mapped = await MsBackend(loader([], runner)).load(spec(model), silent)
    assert mapped.unclaimed_bytes == plain.unclaimed_bytes + 1000
    assert mapped.memory_bytes == plain.memory_bytes


def test_only_the_daemon_chooses_the_folder(cache: Path) -> None:
    assert _ms_options(MsOptions(), trust_model_code=False)["packed_cache"] is None, "overrides a model's own"
    assert _ms_options(MsOptions(packed_cache=cache), trust_model_code=False)["packed_cache"] == str(cache)
