"""Every writer, read back by other programs' readers."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.writers import ckpt_file
from builder.checkpoints.writers.ckpt_file import ckpt_bytes, piece_lengths
from builder.checkpoints.writers.safetensors_file import safetensors_bytes
from builder.checkpoints.writers.streams import NamedView, Stream
from builder.checkpoints.writers.torch_file import torch_bytes
from contract.faults import Fault
from tests.builder.checkpoints.arrays import Arrays, arrays_of, same

ARRAYS: Arrays = {
    "model.layers.0.weight": np.arange(3000, dtype="<f4").reshape(60, 50),
    "bias": np.arange(7, dtype="<f2"),
    "steps": np.array([1, 2, 3], "<i8"),
    "scalar": np.array(2.5, "<f4"),
}


@pytest.fixture
def views(tmp_path: Path) -> list[NamedView]:
    save_file(dict(ARRAYS), tmp_path / "source.safetensors", {"format": "pt"})
    return [NamedView(*item) for item in read_tensor_file(tmp_path / "source.safetensors").tensors.items()]


def test_safetensors_has_the_bytes_of_the_formats_own_writer(views: list[NamedView], tmp_path: Path) -> None:
    written = b"".join(safetensors_bytes(views, Stream(), {"format": "pt"}))
    assert written == (tmp_path / "source.safetensors").read_bytes()


def test_torch_zip_is_sound_and_aligned(views: list[NamedView], tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"".join(torch_bytes(views, Stream())))
    assert same(arrays_of(path), ARRAYS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for view in read_tensor_file(path).tensors.values():
        assert vars(view)["spans"][0].offset % 64 == 0


def test_pieces_of_a_ckpt_are_whole_rows(monkeypatch: pytest.MonkeyPatch, views: list[NamedView]) -> None:
    assert piece_lengths((60, 50), 12000) == [12000]
    monkeypatch.setattr(ckpt_file, "_PIECE_BYTES", 5000)
    assert piece_lengths((60, 50), 12000) == [4000, 4000, 4000]
    assert piece_lengths((7, 1000), 28000) == [8000, 4000, 4000, 4000, 4000, 4000]
    assert piece_lengths((2, 5000), 40000) == [20000, 20000]
    assert b"".join(ckpt_bytes(views, Stream())).count(b"model.layers.0.weight") == 3


def test_a_ckpt_in_pieces_is_read_whole(
    monkeypatch: pytest.MonkeyPatch, views: list[NamedView], tmp_path: Path
) -> None:
    monkeypatch.setattr(ckpt_file, "_PIECE_BYTES", 5000)
    (tmp_path / "a.ckpt").write_bytes(b"".join(ckpt_bytes(views, Stream())))
    assert same(arrays_of(tmp_path / "a.ckpt"), ARRAYS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_a_value_that_is_no_weight_is_refused_unless_allowed(
    value: float, dtype: str, tmp_path: Path
) -> None:
    array = np.ones(300_000, dtype)
    array[-1] = value
    save_file({"w": array}, tmp_path / "a.safetensors")
    views = [NamedView(*item) for item in read_tensor_file(tmp_path / "a.safetensors").tensors.items()]
    with pytest.raises(Fault, match="w holds infinite or NaN values") as caught:
        list(safetensors_bytes(views, Stream(), {}))
    assert "--allow-nonfinite" in caught.value.hint
    (tmp_path / "b.safetensors").write_bytes(
        b"".join(safetensors_bytes(views, Stream(allow_nonfinite=True), {}))
    )
    assert same(load_file(tmp_path / "b.safetensors"), {"w": array})


_MINDSPORE = """
import sys
import mindspore as ms
import numpy as np
folder = sys.argv[1]
arrays = np.load(f"{folder}/arrays.npz")
listed = [{"name": name, "data": ms.Tensor(arrays[name])} for name in arrays]
ms.save_checkpoint(listed, f"{folder}/ms.ckpt")
ms.save_checkpoint(listed, f"{folder}/crc.ckpt", crc_check=True)
half = ms.Tensor(np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)).astype(ms.bfloat16)
ms.save_checkpoint([{"name": "b", "data": half}], f"{folder}/bf16.ckpt")
loaded = ms.load_checkpoint(f"{folder}/ours.ckpt")
for name in arrays:
    assert loaded[name].asnumpy().tobytes() == arrays[name].tobytes(), name
    assert loaded[name].shape == arrays[name].shape, name
"""


def test_mindspore_reads_and_writes_the_same_ckpt(views: list[NamedView], tmp_path: Path) -> None:
    pytest.importorskip("mindspore", reason="MindSpore is not installed")
    np.savez(tmp_path / "arrays.npz", **ARRAYS)
    ordered = sorted(views, key=lambda tensor: list(ARRAYS).index(tensor.name))
    (tmp_path / "ours.ckpt").write_bytes(b"".join(ckpt_bytes(ordered, Stream())))
    subprocess.run([sys.executable, "-c", _MINDSPORE, str(tmp_path)], check=True, timeout=100)
    assert (tmp_path / "ms.ckpt").read_bytes() == (tmp_path / "ours.ckpt").read_bytes()
    assert same(arrays_of(tmp_path / "crc.ckpt"), ARRAYS)
    wide = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    read = arrays_of(tmp_path / "bf16.ckpt")["b"].astype(np.uint32) << 16
    assert np.abs(read.view(np.float32) - wide).max() < 0.02
