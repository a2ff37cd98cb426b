"""The tensor codec: every datatype there and back, and what is refused."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import tensors
from contract.faults import Fault
from contract.tensors import Tensor

NUMBERS: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "FP32": [0.5, -2.0],
    "FP64": [0.1, 1e300],
}


@pytest.mark.parametrize("datatype", list(NUMBERS))
@pytest.mark.parametrize("binary", [True, False])
def test_numbers_survive(datatype: str, binary: bool) -> None:
    tensor = tensors.from_values("x", datatype, [2], NUMBERS[datatype])
    entries, raw = tensors.encode([tensor], {"x"} if binary else set())
    assert tensors.decode(entries, raw) == {"x": tensor}
    assert tensors.values(tensor) == NUMBERS[datatype]


@given(st.lists(st.text()))
def test_strings_survive(elements: list[str]) -> None:
    tensor = tensors.string_tensor("x", elements)
    assert tensors.strings(tensor) == elements
    for binary in ({"x"}, set[str]()):
        entries, raw = tensors.encode([tensor], binary)
        assert tensors.decode(entries, raw) == {"x": tensor}


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(Fault):
        assert tensors.pack_bytes(tensors.unpack_bytes("x", data)) == data


def test_half_precision_is_binary_only() -> None:
    half = Tensor("x", "FP16", [1], struct.pack("<e", 1.5))
    brain = Tensor("x", "BF16", [1], struct.pack("<f", 1.5)[2:])
    for tensor in (half, brain):
        assert tensors.values(tensor) == [1.5]
        entries, raw = tensors.encode([tensor], set())
        assert "data" not in entries[0]
        assert tensors.decode(entries, raw) == {"x": tensor}
        with pytest.raises(Fault, match="no JSON form"):
            tensors.from_values("x", tensor.datatype, [1], [1.5])


def test_nested_data_is_flattened() -> None:
    tensor = tensors.from_values("x", "INT32", [2, 2], [[1, 2], [3, 4]])
    assert tensors.values(tensor) == [1, 2, 3, 4]


def test_several_binary_tensors_follow_one_another() -> None:
    first, second = tensors.string_tensor("a", ["生抽"]), tensors.number_tensor("b", "FP32", [1.0, 2.0])
    entries, raw = tensors.encode([first, second], {"a", "b"})
    assert tensors.decode(entries, raw) == {"a": first, "b": second}


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "INT32", "shape": [1], "data": [1], **changes}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "expected an array"),
        ([5], "expected an array"),
        ([entry(name=5)], "no 'name'"),
        ([entry(datatype=None)], "no 'datatype'"),
        ([entry(datatype="INT4")], "invalid datatype for input x"),
        ([entry(shape="1")], "'shape' of input 'x'"),
        ([entry(shape=[True])], "'shape' of input 'x'"),
        ([entry(shape=[-1])], "negative dimension"),
        ([entry(shape=[2])], "Shape does not match true shape"),
        ([entry(data=1)], "must be an array"),
        ([entry(data=["1"])], "is no INT32"),
        ([entry(data=[True])], "is no INT32"),
        ([entry(data=[2**31])], "does not fit in INT32"),
        ([entry(data=[[1], 2], shape=[2])], "ragged"),
        ([entry(), entry()], "already exists"),
        ([entry(parameters=[1])], "an object is expected"),
        ([entry(parameters={"binary_data_size": 4})], "exactly one of"),
        ([{"name": "x", "datatype": "INT32", "shape": [1]}], "exactly one of"),
        ([entry(parameters={"shared_memory_region": "r"})], "shared memory"),
    ],
)
def test_wrong_entries(entries: Any, words: str) -> None:
    with pytest.raises(Fault, match=words):
        tensors.decode(entries, b"")


@pytest.mark.parametrize(
    ("datatype", "size", "raw", "words"),
    [
        ("INT32", 3, b"abc", "byte size mismatch"),
        ("INT32", 9, b"abcd", "unable to parse 'binary_data_size'"),
        ("INT32", -1, b"abcd", "unable to parse 'binary_data_size'"),
        ("INT32", 4, b"abcdef", "unexpected additional input data"),
        ("BYTES", 3, b"abc", "incomplete length prefix"),
        ("BYTES", 5, b"\x09\0\0\0a", "is cut"),
        ("BYTES", 8, b"\0\0\0\0\0\0\0\0", "expected 1 string elements"),
    ],
)
def test_wrong_binary(datatype: str, size: int, raw: bytes, words: str) -> None:
    wrong = {"name": "x", "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": size}}
    with pytest.raises(Fault, match=words):
        tensors.decode([wrong], raw)


def test_typed_readers_check_the_datatype() -> None:
    with pytest.raises(Fault, match="'BYTES' is expected"):
        tensors.strings(tensors.number_tensor("x", "INT32", [1]))
    with pytest.raises(Fault, match="'BOOL' is expected"):
        tensors.bools(tensors.string_tensor("x", ["a"]))
    with pytest.raises(Fault, match="not UTF-8"):
        tensors.strings(Tensor("x", "BYTES", [1], tensors.pack_bytes([b"\xff"])))
    assert tensors.bools(tensors.number_tensor("x", "BOOL", [True, False])) == [True, False]


@pytest.mark.parametrize("length", ["x", "-1", "9", "", "１"])
def test_wrong_header_length(length: str) -> None:
    with pytest.raises(Fault, match="unable to parse"):
        tensors.split_body(b"{}", length)


def test_split_body() -> None:
    assert tensors.split_body(b"{}raw", "2") == (b"{}", b"raw")
    assert tensors.split_body(b"{}", None) == (b"{}", b"")
