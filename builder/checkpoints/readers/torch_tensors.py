"""What a torch pickle says of its tensors: which run of which storage each one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from builder.checkpoints.arrangements import Transposed
from builder.checkpoints.readers.limits import checked_name, checked_shape, tensor_bytes
from builder.checkpoints.readers.pickles import Call, Name, Reference
from builder.checkpoints.safetensors_header import DTYPE_BYTES
from builder.checkpoints.views import SourceFile, Span, Stored, View
from builder.checkpoints.wire import MalformedError

STORAGE_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "torch.FloatStorage": "F32",
        "torch.HalfStorage": "F16",
        "torch.BFloat16Storage": "BF16",
        "torch.DoubleStorage": "F64",
        "torch.LongStorage": "I64",
        "torch.IntStorage": "I32",
        "torch.ShortStorage": "I16",
        "torch.CharStorage": "I8",
        "torch.ByteStorage": "U8",
        "torch.BoolStorage": "BOOL",
    }
)
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_WRAPPERS = ("state_dict", "module", "model")
"""Where training frameworks put the weights in a larger table."""

Locate = Callable[[str, int], Span]
"""Key of a storage and its bytes -> where it lies in the file. Raises ``MalformedError``."""


def tensors_of(file: SourceFile, content: Any, locate: Locate) -> dict[str, View]:
    """The tensors of a loaded pickle. Raises ``MalformedError``."""
    return {name: _view(file, name, call, locate) for name, call in _tensor_calls(content)}


def _tensor_calls(content: Any) -> Iterator[tuple[str, Call]]:
    for table in (content, *(content.get(key) for key in _WRAPPERS if isinstance(content, dict))):
        if not isinstance(table, dict):
            continue
        found = [(checked_name(key), call) for key, value in table.items() if (call := _tensor_call(value))]
        if found:
            yield from found
            return
    raise MalformedError("holds no table of tensors")


def _tensor_call(value: Any) -> Call | None:
    if isinstance(value, Call) and value.name == _PARAMETER:
        value = value.arguments[0] if value.arguments else None
    return value if isinstance(value, Call) and value.name in _TENSORS else None


def _view(file: SourceFile, name: str, call: Call, locate: Locate) -> View:
    if len(call.arguments) < 4:
        raise MalformedError(f"does not say how {name} is stored")
    reference, offset, size, stride = call.arguments[:4]
    dtype, key, elements = _storage(name, reference)
    shape, steps = (checked_shape(name, _items(name, axes)) for axes in (size, stride))
    if len(shape) != len(steps) or not isinstance(offset, int) or offset < 0:
        raise MalformedError(f"holds {name} with an impossible shape")
    span = locate(key, elements * DTYPE_BYTES[dtype])
    view = _dense(file, name, dtype, shape, steps)
    needed, start = tensor_bytes(dtype, shape), offset * DTYPE_BYTES[dtype]
    if start + needed > span.length:
        raise MalformedError(f"holds {name}, which reaches behind the end of its storage")
    return view(Span(span.offset + start, needed))


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, Call) and value.name == "torch.Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, tuple):
        raise MalformedError(f"holds {name} with an impossible shape")
    return value


def _storage(name: str, reference: Any) -> tuple[str, str, int]:
    """dtype, key and number of elements of a storage."""
    parts = reference.key if isinstance(reference, Reference) else None
    if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage":
        raise MalformedError(f"does not say how {name} is stored")
    kind, key, _, elements = parts[1:5]
    dtype = STORAGE_DTYPES.get(kind.name) if isinstance(kind, Name) else None
    if dtype is None:
        raise MalformedError(f"holds {name} of a type that MindPort does not read")
    if (len(parts) == 6 and parts[5] is not None) or not isinstance(key, str):
        raise MalformedError(f"holds {name} in a form of an old torch")
    if not isinstance(elements, int) or not 0 <= elements < 2**63:
        raise MalformedError(f"holds {name} in a storage of an impossible size")
    return dtype, key, elements


def _dense(
    file: SourceFile, name: str, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...]
) -> Callable[[Span], View]:
    """How to see a tensor that fills its part of a storage, row by row or column by column."""
    if _fills(shape, stride):
        return lambda span: Stored(file, dtype, shape, (span,))
    if len(shape) > 1:
        swapped = (*shape[:-2], shape[-1], shape[-2])
        if _fills(swapped, (*stride[:-2], stride[-1], stride[-2])):
            return lambda span: Transposed(Stored(file, dtype, swapped, (span,)))
    raise MalformedError(f"holds {name}, whose elements do not lie side by side")


def _fills(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    if 0 in shape:
        return True
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
