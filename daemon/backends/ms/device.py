"""What a network is built for, and the Cell that every operator of the layer API is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mindspore
from mindspore import nn, ops

from daemon.backends.ms import kernels as k
from daemon.backends.ms.quantization import Formats, Use
from daemon.backends.ms.weights import MatrixShape, Slot, Tensor, WeightPlan


@dataclass(slots=True)
class Device:
    """The CPU a network is built for: its kernels, the model's limits, the weights asked for so far."""

    library: k.Kernels
    model: int
    max_rows: int
    formats: Formats
    plan: WeightPlan = field(default_factory=WeightPlan)
    matrices: list[int] = field(default_factory=list)
    adaptable: dict[int, MatrixShape] = field(default_factory=dict)
    """Matrices of linear layers that every row passes through: adapters may change them."""

    def new_matrix(
        self, rows: int, cols: int, names: Sequence[str], *, parts: int = 1, use: Use = "linear"
    ) -> int:
        """A packed matrix for these tensors, in the format the model is to have them."""
        dtype = self.formats.of(names, use)
        if isinstance(dtype, k.Whole):
            matrix = self._keep(self.library.new_whole_matrix(rows, cols, dtype, parts=parts))
        else:
            matrix = self._keep(self.library.new_matrix(rows, cols, parts=parts, dtype=dtype))
        if use != "table":
            self.adaptable[matrix] = MatrixShape(rows, cols, parts)
        return matrix

    def protect(self, *matrices: int) -> None:
        """Adapters must leave these alone."""
        for matrix in matrices:
            self.adaptable.pop(matrix, None)

    def new_exact_matrix(self, rows: int, cols: int, name: str) -> int:
        """A matrix that stays float32 whatever the model's format, unless it is stored quantized."""
        dtype = self.formats.of([name], "exact")
        if isinstance(dtype, k.Whole):
            return self._keep(self.library.new_whole_matrix(rows, cols, dtype))
        return self._keep(self.library.new_matrix(rows, cols))

    def _keep(self, matrix: int) -> int:
        self.matrices.append(matrix)
        return matrix

    def release(self) -> None:
        """Forget the matrices: the blocks keep those they use."""
        while self.matrices:
            self.library.free_matrix(self.matrices.pop())

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed matrices."""
        return sum(self.library.matrix_bytes(matrix) for matrix in self.matrices)


class Operator(nn.Cell):  # type: ignore[misc]  # MindSpore is untyped
    """A fused operator over blocks of the kernels, by their handles."""

    def __init__(
        self, device: Device, name: str, blocks: Sequence[int], output: tuple[tuple[int, ...], Any]
    ) -> None:
        super().__init__()
        shape, dtype = output
        self.handles = mindspore.Tensor(blocks, mindspore.int64)
        self.operator = ops.Custom(
            f"{device.library.path}:{name}",
            out_shape=lambda *_: shape,
            out_dtype=lambda *_: dtype,
            func_type="aot",
        )

    def construct(self, x: Any, step: Any) -> Any:
        return self.operator(x, step, self.handles)


class Block(Operator):
    """One block and its operator."""

    def __init__(
        self, device: Device, operator: str, block: int, output: tuple[tuple[int, ...], Any]
    ) -> None:
        super().__init__(device, operator, [block], output)
        self.block = block


def names_of(tensors: Sequence[Tensor], *roles: str) -> list[str]:
    """The tensors that have one of these roles."""
    return [tensor.name for tensor in tensors if set(roles) & set(tensor.roles)]


def rows_out(device: Device, hidden: int) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of a block's output."""
    return (device.max_rows, hidden), mindspore.float32


def vector_slot(block: int, vector: int, rows: int, *, first: int = 0, size: int | None = None) -> Slot:
    """A slot for elements of a block's vector."""
    return Slot(rows=rows, first=first, block=block, vector=vector, size=rows if size is None else size)
