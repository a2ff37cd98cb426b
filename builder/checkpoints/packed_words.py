"""The matrices of GPTQ and AWQ as compressed-tensors' ``pack-quantized`` has them, value for value.

Both store a linear layer ``X`` transposed, input by output: ``X.qweight`` in 32-bit words, ``X.qzeros`` with
the zero point of every group and output, packed along the outputs, and ``X.scales``. GPTQ packs ``qweight``
along the inputs, AWQ along the outputs with the eight values of a word in the order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.checkpoints.group_quantizer import pack
from builder.checkpoints.safetensors_header import DTYPE_BYTES
from builder.checkpoints.views import Stored, View
from builder.ready_made import WHOLE_ROW, ReadyMade
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK_ELEMENTS = 8 * 1024 * 1024
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word the value of each output lies: the order above turned round."""


@dataclass(frozen=True)
class PackedLayer:
    """One linear layer as it is stored."""

    name: str
    form: ReadyMade
    qweight: Stored
    qzeros: Stored
    scales: Stored

    @property
    def per_word(self) -> int:
        return 32 // self.form.bits

    @property
    def outputs(self) -> int:
        return self.scales.shape[1]

    @property
    def inputs(self) -> int:
        return self.qweight.shape[0] * (self.per_word if self.form.method == "gptq" else 1)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.inputs if self.form.group == WHOLE_ROW else min(self.form.group, self.inputs)

    def integers(self, first: int, count: int) -> NDArray[np.uint8]:
        """Unsigned, of these outputs: [count, inputs]."""
        import numpy as np

        if self.form.method == "awq":
            return self._along_outputs(self.qweight, first, count)
        words = np.ascontiguousarray(_columns(self.qweight, first, first + count).T)
        return _unpacked(words, self.form.bits)

    def zeros(self, first: int, count: int) -> NDArray[np.uint8]:
        """The zero points of these outputs: [count, groups]."""
        import numpy as np

        stored = self._along_outputs(self.qzeros, first, count)
        # GPTQModel and AutoGPTQ add the one within the bits of a zero point, and so does this.
        largest = (1 << self.form.bits) - 1
        return ((stored.astype(np.uint16) + self.form.zero_offset) & largest).astype(np.uint8)

    def _along_outputs(self, part: Stored, first: int, count: int) -> NDArray[np.uint8]:
        import numpy as np

        start, end = first // self.per_word, -(-(first + count) // self.per_word)
        values = _unpacked(_columns(part, start, end), self.form.bits)
        if self.form.method == "awq":
            values = values.reshape(len(values), -1, self.per_word)[:, :, _AWQ_PLACES].reshape(
                len(values), -1
            )
        skipped = first - start * self.per_word
        return np.ascontiguousarray(values[:, skipped : skipped + count].T)

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero point lies in the middle."""
        return bool((self.zeros(0, self.outputs) == 1 << (self.form.bits - 1)).all())


@dataclass(frozen=True)
class PackedWeight(View):
    """``X.weight_packed``: rows are outputs, the zero points subtracted."""

    layer: PackedLayer
    bits: int

    dtype = "I32"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.layer.outputs, self.layer.inputs * self.bits // 32

    def fill(self, first: int, out: NDArray[Any]) -> None:
        height = max(1, _BLOCK_ELEMENTS // self.layer.inputs)
        for start in range(0, len(out), height):
            self._fill_block(first + start, out[start : start + height])

    def _fill_block(self, first: int, out: NDArray[Any]) -> None:
        import numpy as np

        values = self.layer.integers(first, len(out)).astype(np.int16)
        zeros = self.layer.zeros(first, len(out)).astype(np.int16)
        values -= np.repeat(zeros, self.layer.group, axis=1)[:, : values.shape[1]]
        half = 1 << (self.bits - 1)
        if values.size and (int(values.min()) < -half or int(values.max()) >= half):
            message = f"{self.layer.name}.qzeros became another while it was read"
            raise Fault(FaultKind.INVALID_MODEL, message, "fetch the checkpoint again")
        out[...] = np.frombuffer(pack(values.astype(np.int8), self.bits), "<u4").reshape(out.shape)


@dataclass(frozen=True)
class GroupScales(View):
    """``X.weight_scale``: rows are outputs; a group that is divided gives every part its scale."""

    layer: PackedLayer
    group: int

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.layer.scales.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.layer.outputs, self.layer.inputs // self.group

    def fill(self, first: int, out: NDArray[Any]) -> None:
        import numpy as np

        scales = _columns(self.layer.scales, first, first + len(out)).T
        out[...] = scales[:, np.arange(out.shape[1]) * self.group // self.layer.group]


@dataclass(frozen=True)
class Shape(View):
    """``X.weight_shape``."""

    values: tuple[int, ...]

    dtype = "I64"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.values),)

    def fill(self, first: int, out: NDArray[Any]) -> None:
        out[:, 0] = self.values[first : first + len(out)]


def _columns(part: Stored, first: int, end: int) -> NDArray[Any]:
    """Some columns of a stored matrix, as unsigned integers of its elements' width."""
    import numpy as np

    rows, width = part.shape
    size = DTYPE_BYTES[part.dtype]
    out = np.empty((rows, end - first), f"<u{size}")
    if end - first == width:
        part.fill(0, out)
        return out
    for row in range(rows):
        part.file.read_into(part.spans[0].offset + (row * width + first) * size, out[row])
    return out


def _unpacked(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The values of 32-bit words, lowest bits first along a row."""
    import numpy as np

    data = words.view(np.uint8)
    if bits == 8:
        return data
    values = np.empty((len(data), data.shape[1] * 2), np.uint8)
    values[:, 0::2], values[:, 1::2] = data & 15, data >> 4
    return values
