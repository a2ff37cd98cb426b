"""torch itself reads what the builder writes, and the builder what torch writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.writers.streams import NamedView, Stream
from builder.checkpoints.writers.torch_file import torch_bytes
from tests.builder.checkpoints.arrays import arrays_of, same
from tests.builder.engines.conftest import Ask

ARRAYS = {
    "model.layers.0.weight": np.arange(3000, dtype="<f4").reshape(60, 50),
    "bias": np.arange(7, dtype="<f2"),
    "steps": np.array([1, 2, 3], "<i8"),
    "scalar": np.array(2.5, "<f4"),
}
_READS = """
import json, sys
import numpy as np
import torch
expected = np.load(f"{sys.argv[1]}/arrays.npz")
for mapped in (False, True):
    loaded = torch.load(f"{sys.argv[1]}/ours.bin", weights_only=True, mmap=mapped)
    assert list(loaded) and set(loaded) == set(expected)
    for name, tensor in loaded.items():
        assert tensor.shape == expected[name].shape and tensor.numpy().tobytes() == expected[name].tobytes()
print(json.dumps(len(loaded)))
"""
_WRITES = """
import json, sys
import numpy as np
import torch
arrays = np.load(f"{sys.argv[1]}/arrays.npz")
tensors = {name: torch.from_numpy(arrays[name]) for name in arrays}
weight = tensors["model.layers.0.weight"]
tensors |= {"turned": weight.t(), "part": weight[3:5], "half": torch.nn.Parameter(weight.bfloat16())}
for legacy in (False, True):
    path = f"{sys.argv[1]}/legacy={legacy}.pth"
    torch.save({"epoch": 3, "state_dict": tensors}, path, _use_new_zipfile_serialization=not legacy)
print(json.dumps(len(tensors)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "arrays.npz", **ARRAYS)
    return tmp_path


def test_torch_reads_what_is_written(ask: Ask, folder: Path) -> None:
    save_file(ARRAYS, folder / "a.safetensors")
    views = [NamedView(*item) for item in read_tensor_file(folder / "a.safetensors").tensors.items()]
    (folder / "ours.bin").write_bytes(b"".join(torch_bytes(views, Stream())))
    assert ask(_READS, folder) == len(ARRAYS)


def test_what_torch_saves_is_read(ask: Ask, folder: Path) -> None:
    assert ask(_WRITES, folder) == len(ARRAYS) + 3
    weight = ARRAYS["model.layers.0.weight"]
    for legacy in (False, True):
        found = arrays_of(folder / f"legacy={legacy}.pth")
        halves = found.pop("half").astype(np.uint32) << 16
        assert np.allclose(halves.view(np.float32), weight, rtol=2**-8)
        assert same(found, {**ARRAYS, "turned": np.ascontiguousarray(weight.T), "part": weight[3:5]})
