"""KServe v2 tensors as bytes and as JSON: datatypes, BYTES packing, the binary extension.

Client and daemon use the same codec. Knows nothing of HTTP, gRPC or of what a tensor means. Raises ``Fault``
with the words Triton uses, because clients look for them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from contract.faults import Fault, FaultKind

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the length of the JSON in front of raw tensors."""

_FORMATS: Mapping[str, str] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
    "BF16": "H",
}
DATATYPES = frozenset((*_FORMATS, "BYTES"))
BINARY_ONLY = frozenset(("FP16", "BF16"))
"""Datatypes that have no JSON form."""


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor; ``data`` is raw little-endian, BYTES elements length-prefixed."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


def invalid(message: str, hint: str = "") -> Fault:
    return Fault(FaultKind.INVALID_REQUEST, message, hint)


def element_count(name: str, shape: Sequence[int]) -> int:
    if any(dimension < 0 for dimension in shape):
        raise invalid(f"unexpected shape for input '{name}': {list(shape)} has a negative dimension")
    return math.prod(shape)


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """BYTES elements in their raw form: four length bytes, then the element."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def unpack_bytes(name: str, data: bytes) -> list[bytes]:
    """The elements of a raw BYTES tensor."""
    elements: list[bytes] = []
    offset = 0
    while offset < len(data):
        end = offset + 4
        if end > len(data):
            raise invalid(f"unexpected end of data in BYTES tensor '{name}': incomplete length prefix")
        (length,) = struct.unpack_from("<I", data, offset)
        offset, end = end, end + length
        if end > len(data):
            raise invalid(
                f"unexpected end of data in BYTES tensor '{name}': element of {length} bytes is cut"
            )
        elements.append(data[offset:end])
        offset = end
    return elements


def check(tensor: Tensor) -> None:
    """The datatype exists and the data has as many elements as the shape says."""
    count = element_count(tensor.name, tensor.shape)
    if tensor.datatype not in DATATYPES:
        known = ", ".join(sorted(DATATYPES))
        raise invalid(f"invalid datatype for input {tensor.name}: '{tensor.datatype}'", f"one of: {known}")
    if tensor.datatype == "BYTES":
        found = len(unpack_bytes(tensor.name, tensor.data))
        if found != count:
            message = f"expected {count} string elements for inference input '{tensor.name}', got {found}"
            raise invalid(message)
        return
    expected = count * struct.calcsize("<" + _FORMATS[tensor.datatype])
    if len(tensor.data) != expected:
        message = (
            f"input byte size mismatch for input '{tensor.name}': "
            f"shape {tensor.shape} needs {expected} bytes, got {len(tensor.data)}"
        )
        raise invalid(message)


def strings(tensor: Tensor) -> list[str]:
    """Elements of a BYTES tensor as text."""
    _require(tensor, "BYTES")
    try:
        return [element.decode() for element in unpack_bytes(tensor.name, tensor.data)]
    except UnicodeDecodeError:
        raise invalid(f"input '{tensor.name}' is not UTF-8 text") from None


def bools(tensor: Tensor) -> list[bool]:
    _require(tensor, "BOOL")
    return [byte != 0 for byte in tensor.data]


def values(tensor: Tensor) -> list[Any]:
    """Elements as Python values, flat: str, bool, int or float."""
    check(tensor)
    if tensor.datatype == "BYTES":
        return list(strings(tensor))
    if tensor.datatype == "BOOL":
        return list(bools(tensor))
    code = _FORMATS[tensor.datatype]
    count = len(tensor.data) // struct.calcsize("<" + code)
    numbers = struct.unpack(f"<{count}{code}", tensor.data)
    if tensor.datatype == "BF16":
        return [struct.unpack("<f", struct.pack("<I", number << 16))[0] for number in numbers]
    return list(numbers)


def from_values(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """A tensor from JSON ``data``, nested or flat."""
    if datatype not in DATATYPES:
        known = ", ".join(sorted(DATATYPES))
        raise invalid(f"invalid datatype for input {name}: '{datatype}'", f"one of: {known}")
    if datatype in BINARY_ONLY:
        raise invalid(f"input '{name}': {datatype} has no JSON form", "send it with the binary extension")
    flat = _flatten(name, data)
    if len(flat) != element_count(name, shape):
        message = f"Unable to parse 'data': Shape does not match true shape of 'data' field of input '{name}'"
        raise invalid(f"{message}: shape {list(shape)}, {len(flat)} elements")
    return Tensor(name, datatype, list(shape), _pack(name, datatype, flat))


def string_tensor(name: str, elements: Sequence[str], shape: Sequence[int] | None = None) -> Tensor:
    data = pack_bytes(element.encode() for element in elements)
    return Tensor(name, "BYTES", list(shape) if shape is not None else [len(elements)], data)


def number_tensor(name: str, datatype: str, elements: Sequence[float]) -> Tensor:
    """A one-dimensional tensor of numbers or bools."""
    return Tensor(name, datatype, [len(elements)], _pack(name, datatype, elements))


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON and the raw tensors of a body, by the value of the header ``HEADER_LENGTH``."""
    if header_length is None:
        return body, b""
    if not header_length.isascii() or not header_length.isdigit() or int(header_length) > len(body):
        message = f"{HEADER_LENGTH}: unable to parse '{header_length}' for a body of {len(body)} bytes"
        raise invalid(message, "send the number of bytes of the JSON in front of the binary data")
    length = int(header_length)
    return body[:length], body[length:]


def decode(entries: Any, binary: bytes) -> dict[str, Tensor]:
    """The tensors of an ``inputs`` or ``outputs`` array, by name, in order."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise invalid(
            "Unable to parse 'inputs': attempt to access non-existing object, expected an array of objects"
        )
    tensors: dict[str, Tensor] = {}
    offset = 0
    for entry in entries:
        tensor, size = _decode_one(entry, binary, offset)
        if tensor.name in tensors:
            raise invalid(f"input '{tensor.name}' already exists in request")
        tensors[tensor.name] = tensor
        offset += size
    if offset != len(binary):
        raise invalid(f"unexpected additional input data: {len(binary) - offset} bytes belong to no tensor")
    return tensors


def encode(tensors: Iterable[Tensor], binary: Collection[str]) -> tuple[list[dict[str, Any]], bytes]:
    """The JSON array for these tensors and the raw bytes after it; ``binary`` names those sent raw."""
    entries: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for tensor in tensors:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if tensor.name in binary or tensor.datatype in BINARY_ONLY:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            raw.append(tensor.data)
        else:
            entry["data"] = values(tensor)
        entries.append(entry)
    return entries, b"".join(raw)


def _require(tensor: Tensor, datatype: str) -> None:
    check(tensor)
    if tensor.datatype != datatype:
        raise invalid(f"tensor '{tensor.name}' data-type is '{tensor.datatype}', '{datatype}' is expected")


def _decode_one(entry: Mapping[str, Any], binary: bytes, offset: int) -> tuple[Tensor, int]:
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if not isinstance(name, str) or not name:
        raise invalid("Unable to parse 'inputs': an input has no 'name'")
    if not isinstance(datatype, str):
        raise invalid(f"Unable to parse 'inputs': input '{name}' has no 'datatype'")
    if not isinstance(shape, list) or any(type(dimension) is not int for dimension in shape):
        raise invalid(f"Unable to parse 'inputs': 'shape' of input '{name}' must be an array of integers")
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise invalid(f"Unable to parse 'parameters' of input '{name}': an object is expected")
    if "shared_memory_region" in parameters:
        message = f"input '{name}': shared memory is not offered"
        raise Fault(FaultKind.UNSUPPORTED, message, "send the data in the request")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise invalid(f"input '{name}' needs exactly one of 'data' and 'binary_data_size'")
    if size is None:
        return from_values(name, datatype, shape, entry["data"]), 0
    if type(size) is not int or size < 0 or offset + size > len(binary):
        left = len(binary) - offset
        raise invalid(f"unable to parse 'binary_data_size' of input '{name}': {size} with {left} bytes left")
    tensor = Tensor(name, datatype, shape, binary[offset : offset + size])
    check(tensor)
    return tensor, size


def _flatten(name: str, data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise invalid(f"Unable to parse 'data': 'data' of input '{name}' must be an array")
    while any(isinstance(element, list) for element in data):
        if not all(isinstance(element, list) for element in data):
            raise invalid(f"Unable to parse 'data': the array of input '{name}' is ragged")
        data = [inner for element in data for inner in element]
    return list(data)


def _pack(name: str, datatype: str, flat: Sequence[Any]) -> bytes:
    accepts = _ACCEPTS[datatype]
    for element in flat:
        if not accepts(element):
            raise invalid(
                f"Unable to parse 'data': element {element!r:.60} of input '{name}' is no {datatype}"
            )
    if datatype == "BYTES":
        return pack_bytes(element.encode() for element in flat)
    try:
        return struct.pack(f"<{len(flat)}{_FORMATS[datatype]}", *flat)
    except (struct.error, OverflowError):
        raise invalid(
            f"Unable to parse 'data': an element of input '{name}' does not fit in {datatype}"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_ACCEPTS: Mapping[str, Callable[[object], bool]] = {
    datatype: (
        (lambda value: isinstance(value, str))
        if datatype == "BYTES"
        else (lambda value: isinstance(value, bool))
        if datatype == "BOOL"
        else _is_number
        if datatype.startswith("FP")
        else (lambda value: type(value) is int)
    )
    for datatype in DATATYPES
}
