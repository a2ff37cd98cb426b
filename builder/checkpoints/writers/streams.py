"""The bytes of a tensor for a file, checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from builder.checkpoints.safetensors_header import DTYPE_BYTES
from builder.checkpoints.views import View
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXPONENTS: Mapping[str, int] = MappingProxyType({"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000})
"""The bits that are all set in an infinite value or NaN."""


@dataclass(frozen=True)
class NamedView:
    """A tensor under the name that it will have in a file."""

    name: str
    view: View


@dataclass(frozen=True)
class Stream:
    """What becomes of tensors on their way into a file."""

    source: str = "the checkpoint"
    """Where the tensors come from, for people."""
    allow_nonfinite: bool = False
    check: Callable[[], None] = lambda: None
    """Called between buffers; raises to stop the work."""

    def chunks(self, tensor: NamedView) -> Iterator[memoryview]:
        """The tensor's bytes. Raises ``Fault`` for a value that is no weight."""
        written = 0
        for chunk in tensor.view.chunks():
            self.check()
            if not self.allow_nonfinite:
                check_finite(chunk.reshape(-1).data, tensor.name, tensor.view.dtype, self.source)
            written += chunk.nbytes
            yield chunk.reshape(-1).data.cast("B")
        if written != tensor.view.bytes:
            raise AssertionError((tensor.name, written, tensor.view.bytes))


def check_finite(data: bytes | memoryview, name: str, dtype: str, source: str) -> None:
    """Raises ``Fault`` when some of these elements are infinite or NaN."""
    import numpy as np

    if dtype == "F64":
        fine = bool(np.isfinite(np.frombuffer(data, "<f8")).all())
    elif dtype in _EXPONENTS:
        fine = _all_finite(np.frombuffer(data, f"<u{DTYPE_BYTES[dtype]}"), _EXPONENTS[dtype])
    else:
        return
    if not fine:
        message = f"{source}: {name} holds infinite or NaN values"
        hint = "it is damaged, or --dtype cannot hold its values; --allow-nonfinite keeps them"
        raise Fault(FaultKind.INVALID_MODEL, message, hint)


def _all_finite(chunk: NDArray[Any], exponent: int) -> bool:
    """Whether no element has all bits of the exponent set."""
    import numpy as np

    flat, step = chunk.reshape(-1), 256 * 1024  # a block stays in the processor's cache
    scratch = np.empty(min(step, flat.size), flat.dtype)
    for start in range(0, flat.size, step):
        block = flat[start : start + step]
        masked = np.bitwise_and(block, flat.dtype.type(exponent), out=scratch[: block.size])
        if int(masked.max()) == exponent:
            return False
    return True
