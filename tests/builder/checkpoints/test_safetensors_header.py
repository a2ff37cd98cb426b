"""Headers are read as safetensors reads them, and every lie in one is found."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save, save_file

from builder.checkpoints.safetensors_header import HeaderError, TensorEntry, read_header, write_header


def file_of(folder: Path, header: Any, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(shape: list[Any], start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(
        {"b": np.zeros((2, 3), "float16"), "a": np.zeros(5, "float32")}, path, metadata={"format": "pt"}
    )
    header = read_header(path)
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.tensors}
    assert found == {"a": ("F32", (5,)), "b": ("F16", (2, 3))}
    assert header.metadata == {"format": "pt"}
    assert header.size == path.stat().st_size
    assert header.data_start + header.tensors[-1].end == header.size


def test_a_written_header_is_read_by_safetensors() -> None:
    tensors = [TensorEntry("x", "F32", (2,), 0, 8), TensorEntry("空", "F16", (1, 2), 8, 12)]
    data = write_header(tensors, {"format": "pt"}) + np.array([1, 2], "<f4").tobytes() + bytes(4)
    loaded = load(data)
    assert loaded["x"].tolist() == [1, 2]
    assert loaded["空"].shape == (1, 2)


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": entry([2], 0, 8)}, b"1234", "4 of 8 bytes of tensors are missing: it is cut short"),
        ({"a": entry([1], 0, 4)}, b"12345678", "4 bytes behind its last tensor"),
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), "leaves a hole"),
        ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8), "overlaps"),
        ({"a": entry([3], 0, 8)}, bytes(8), "its shape needs 12"),
        ({"a": entry([-1], 0, 4)}, bytes(4), "impossible shape"),
        ({"a": entry([True], 0, 4)}, bytes(4), "impossible shape"),
        ({"a": entry([1], "0", 4)}, bytes(4), "impossible data_offsets"),
        ({"a": entry([1], 0, 4, "F31")}, bytes(4), "unknown dtype"),
        ({"a": {"dtype": "F32"}}, b"", "lacks dtype, shape or data_offsets"),
        ([1], b"", "not a JSON object"),
        (b"{", b"", "not JSON"),
        (b'{"a": 1, "a": 2}', b"", "a key stands twice"),
        (b"\xff\xfe", b"", "not JSON"),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, header: Any, data: bytes, reason: str) -> None:
    with pytest.raises(HeaderError, match=reason):
        read_header(file_of(tmp_path, header, data))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "only 0 bytes"),
        (b"123", "only 3 bytes"),
        (b"\xff" * 16, "is not safetensors"),
        (struct.pack("<Q", 99), "cut short"),
    ],
)
def test_names_a_broken_prefix(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match=reason):
        read_header(path)


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="cannot be read"):
        read_header(tmp_path)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_damage_is_a_header_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sound = save({"a": np.arange(4, dtype="float32"), "b": np.zeros((2, 2), "float16")})
    position = data.draw(st.integers(0, len(sound) - 1))
    value = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    path.write_bytes(sound[:position] + bytes([value]) + sound[position + 1 :])
    try:
        header = read_header(path)
    except HeaderError:
        return
    assert header.data_start + max(tensor.end for tensor in header.tensors) == len(sound)
