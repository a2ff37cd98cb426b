"""Tensors of tests as numpy arrays: to files of every format, and back from views."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.views import View

NUMPY_DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "F64": "<f8",
    "U8": "u1",
    "BOOL": "?",
}
_STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<i8": "LongStorage", "|u1": "ByteStorage"}
Arrays = Mapping[str, NDArray[Any]]


def array_of(view: View, buffer_bytes: int = 64) -> NDArray[Any]:
    """A view's elements, read through a small buffer."""
    parts = [chunk.reshape(-1) for chunk in view.chunks(buffer_bytes)]
    flat = np.concatenate(parts) if parts else np.zeros(0, f"<u{np.dtype(NUMPY_DTYPES[view.dtype]).itemsize}")
    return flat.view(NUMPY_DTYPES[view.dtype]).reshape(view.shape)


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """All tensors of a file."""
    return {name: array_of(view) for name, view in read_tensor_file(path).tensors.items()}


def same(first: Arrays, second: Arrays) -> bool:
    """Equal in names, shapes and bits."""
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


@contextmanager
def pretended_torch() -> Iterator[types.SimpleNamespace]:
    """Names that pickle writes as torch's, so that a real pickler makes what torch would."""

    def rebuild(*arguments: Any) -> None:
        raise AssertionError(arguments)

    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    vars(inner)["_rebuild_tensor_v2"] = rebuild
    storages = {name: type(name, (), {"__module__": "torch"}) for name in _STORAGES.values()}
    vars(torch).update(storages, _utils=inner)
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": inner})
    try:
        yield types.SimpleNamespace(rebuild=rebuild, **storages)
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


class _Tensor:
    def __init__(self, torch: types.SimpleNamespace, key: str, array: NDArray[Any]) -> None:
        self.torch, self.key, self.array = torch, key, array

    def __reduce__(self) -> tuple[Any, ...]:
        storage = _Storage(self.torch, self.key, self.array)
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        return self.torch.rebuild, (storage, 0, self.array.shape, strides, False, OrderedDict())


class _Storage:
    def __init__(self, torch: types.SimpleNamespace, key: str, array: NDArray[Any]) -> None:
        kind = getattr(torch, _STORAGES[array.dtype.str])
        self.reference: tuple[Any, ...] = ("storage", kind, key, "cpu", array.size)


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, legacy: bool) -> None:
        super().__init__(file, protocol=2)
        self.legacy = legacy

    def persistent_id(self, item: Any) -> Any:
        if isinstance(item, _Storage):
            return (*item.reference, None) if self.legacy else item.reference
        return None


def torch_pickle(arrays: Arrays, legacy: bool = False) -> bytes:
    """The state dict of these arrays, by Python's own pickler."""
    with pretended_torch() as torch:
        table = OrderedDict((name, _Tensor(torch, name, array)) for name, array in arrays.items())
        buffer = io.BytesIO()
        _Pickler(buffer, legacy).dump(table)
        return buffer.getvalue()


def write_torch_zip(path: Path, arrays: Arrays, pickled: bytes | None = None) -> Path:
    """What ``torch.save`` writes today."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", torch_pickle(arrays) if pickled is None else pickled)
        archive.writestr("archive/byteorder", b"little")
        for name, array in arrays.items():
            archive.writestr(f"archive/data/{name}", array.tobytes("A"))
        archive.writestr("archive/version", b"3\n")
    return path


def write_torch_legacy(path: Path, arrays: Arrays) -> Path:
    """What ``torch.save`` wrote before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}
    heads = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    content = b"".join((*heads, torch_pickle(arrays, legacy=True), pickle.dumps(sorted(arrays), 2)))
    for name in sorted(arrays):
        content += struct.pack("<q", arrays[name].size) + arrays[name].tobytes("A")
    path.write_bytes(content)
    return path
