"""The layer API, from which network files are built. Public and versioned: they outlive releases.

A network is a MindSpore Cell over these blocks. Each block is one node of the compiled graph, a fused
operator of the kernels, and declares which checkpoint tensors it reads. Activations are float32 [rows,
hidden]; ``step`` is passed through unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mindspore
import numpy as np
from mindspore import nn, ops

from daemon.backends.ms import kernels as k
from daemon.backends.ms.quantization import Formats
from daemon.backends.ms.shape import DecoderShape
from daemon.backends.ms.weights import Slot, Tensor, WeightPlan

LAYER_API_VERSION = 1

__all__ = [
    "LAYER_API_VERSION",
    "AttentionBlock",
    "AttentionOptions",
    "DecoderShape",
    "Device",
    "Embedding",
    "FeedForward",
    "LMHead",
    "Tensor",
    "dynamic_ntk",
]


@dataclass(slots=True)
class Device:
    """The CPU a network is built for: its kernels, the model's limits, the weights asked for so far."""

    library: k.Kernels
    model: int
    max_rows: int
    formats: Formats
    plan: WeightPlan = field(default_factory=WeightPlan)
    matrices: list[int] = field(default_factory=list)

    def new_matrix(
        self, rows: int, cols: int, names: Sequence[str], *, parts: int = 1, linear: bool = True
    ) -> int:
        """A packed matrix for these tensors, in the format the model is to have them."""
        dtype = self.formats.of(names, linear=linear)
        if isinstance(dtype, k.Whole):
            matrix = self.library.new_whole_matrix(rows, cols, dtype, parts=parts)
        else:
            matrix = self.library.new_matrix(rows, cols, parts=parts, dtype=dtype)
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


class _Block(nn.Cell):  # type: ignore[misc]  # MindSpore is untyped
    """A fused operator over a block of the kernels."""

    def __init__(
        self, device: Device, operator: str, block: int, output: tuple[tuple[int, ...], Any]
    ) -> None:
        super().__init__()
        shape, dtype = output
        self.block = block
        self.handle = mindspore.Tensor([block], mindspore.int64)
        self.operator = ops.Custom(
            f"{device.library.path}:{operator}",
            out_shape=lambda *_: shape,
            out_dtype=lambda *_: dtype,
            func_type="aot",
        )

    def construct(self, x: Any, step: Any) -> Any:
        return self.operator(x, step, self.handle)


def _names(tensors: Sequence[Tensor], *roles: str) -> list[str]:
    return [tensor.name for tensor in tensors if set(roles) & set(tensor.roles)]


def _rows_out(device: Device, hidden: int) -> tuple[tuple[int, ...], Any]:
    return (device.max_rows, hidden), mindspore.float32


def _vector(block: int, vector: int, rows: int, *, first: int = 0, size: int | None = None) -> Slot:
    return Slot(rows=rows, first=first, block=block, vector=vector, size=rows if size is None else size)


class Embedding(_Block):
    """Tokens int32 [rows] to their vectors, times ``scale``."""

    def __init__(self, device: Device, shape: DecoderShape, table: str, *, scale: float = 1.0) -> None:
        numbers = (k.EMBEDDING, shape.hidden, shape.vocab, 0, 0, 0, 0)
        block = device.library.new_block(device.model, numbers, shape.eps, scale)
        super().__init__(device, "MindPortEmbedding", block, _rows_out(device, shape.hidden))
        self.matrix = device.new_matrix(shape.vocab, shape.hidden, [table], linear=False)
        device.library.set_matrix(block, k.IN_MATRIX, self.matrix)
        slot = Slot(rows=shape.vocab, matrix=self.matrix, cols=shape.hidden)
        device.plan.add(Tensor(table, ("table",)), {"table": slot})


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What distinguishes the attention of some families."""

    rotary_dim: int | None = None
    """How many first dimensions of a head turn with the position, half-split; ``None``: all, 0: none."""
    slopes: Sequence[float] = ()
    """ALiBi: ``slope * (key position - query position)`` is added to the scores, one slope a head."""
    residual_scale: float = 1.0
    """Multiplies the branch before it is added to the residual stream."""


class AttentionBlock(_Block):
    """``x + residual_scale * o(attention(norm(x)))`` over the paged cache: causal, grouped heads.

    Roles of ``tensors``: q, k, v, o and q_bias, k_bias, v_bias, o_bias.
    """

    def __init__(
        self,
        device: Device,
        shape: DecoderShape,
        norm: str,
        tensors: Sequence[Tensor],
        options: AttentionOptions = AttentionOptions(),
    ) -> None:
        rotary = shape.head_dim if options.rotary_dim is None else options.rotary_dim
        heads = (shape.heads, shape.kv_heads, shape.head_dim, rotary)
        numbers = (k.ATTENTION, shape.hidden, 0, *heads)
        block = device.library.new_block(device.model, numbers, shape.eps, options.residual_scale)
        super().__init__(device, "MindPortAttention", block, _rows_out(device, shape.hidden))
        if options.slopes:
            values = np.array(options.slopes, np.float32)
            device.library.set_vector(block, k.SLOPES, values, size=len(options.slopes))
        slots = self._slots(device, shape, tensors)
        device.plan.add(Tensor(norm, ("norm",)), slots)
        for tensor in tensors:
            device.plan.add(tensor, slots)

    def _slots(self, device: Device, shape: DecoderShape, tensors: Sequence[Tensor]) -> Mapping[str, Slot]:
        library, hidden = device.library, shape.hidden
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        width = q + 2 * kv
        projection = device.new_matrix(width, hidden, _names(tensors, "q", "k", "v"))
        out = device.new_matrix(hidden, q, _names(tensors, "o"))
        library.set_matrix(self.block, k.IN_MATRIX, projection)
        library.set_matrix(self.block, k.OUT_MATRIX, out)
        places = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}
        slots = {
            "norm": _vector(self.block, k.NORM, hidden),
            "o": Slot(rows=hidden, matrix=out, cols=q),
            "o_bias": _vector(self.block, k.OUT_BIAS, hidden),
        }
        for role, (first, rows) in places.items():
            slots[role] = Slot(rows=rows, first=first, matrix=projection, cols=hidden)
            slots[f"{role}_bias"] = _vector(self.block, k.IN_BIAS, rows, first=first, size=width)
        return slots


class FeedForward(_Block):
    """``x + residual_scale * down(silu(gate(n)) * up(n))`` with ``n = norm(x)``.

    Roles of ``tensors``: gate, up, down and gate_bias, up_bias, down_bias.
    """

    def __init__(
        self,
        device: Device,
        shape: DecoderShape,
        norm: str,
        tensors: Sequence[Tensor],
        *,
        residual_scale: float = 1.0,
    ) -> None:
        hidden, inner = shape.hidden, shape.inner
        numbers = (k.FEED_FORWARD, hidden, inner, 0, 0, 0, 0)
        block = device.library.new_block(device.model, numbers, shape.eps, residual_scale)
        super().__init__(device, "MindPortFeedForward", block, _rows_out(device, hidden))
        gate_up = device.new_matrix(inner, hidden, _names(tensors, "gate", "up"), parts=2)
        down = device.new_matrix(hidden, inner, _names(tensors, "down"))
        device.library.set_matrix(block, k.IN_MATRIX, gate_up)
        device.library.set_matrix(block, k.OUT_MATRIX, down)
        slots = {
            "norm": _vector(block, k.NORM, hidden),
            "gate": Slot(rows=inner, matrix=gate_up, part=0, cols=hidden),
            "up": Slot(rows=inner, matrix=gate_up, part=1, cols=hidden),
            "down": Slot(rows=hidden, matrix=down, cols=inner),
            "gate_bias": _vector(block, k.IN_BIAS, inner),
            "up_bias": _vector(block, k.UP_BIAS, inner),
            "down_bias": _vector(block, k.OUT_BIAS, hidden),
        }
        device.plan.add(Tensor(norm, ("norm",)), slots)
        for tensor in tensors:
            device.plan.add(tensor, slots)


class LMHead(_Block):
    """Final norm and logits, times ``logit_scale``, of the rows the step asks for.

    ``table`` names the head's tensor, or is the ``Embedding`` whose table it shares. The logits stay in the
    library, where the runner reads them; the node's output is how many rows there are.
    """

    def __init__(
        self,
        device: Device,
        shape: DecoderShape,
        norm: str,
        table: str | Embedding,
        *,
        logit_scale: float = 1.0,
    ) -> None:
        numbers = (k.HEAD, shape.hidden, shape.vocab, 0, 0, 0, 0)
        block = device.library.new_block(device.model, numbers, shape.eps, logit_scale)
        super().__init__(device, "MindPortHead", block, ((1,), mindspore.int32))
        slots = {"norm": _vector(block, k.NORM, shape.hidden)}
        device.plan.add(Tensor(norm, ("norm",)), slots)
        if isinstance(table, Embedding):
            device.library.set_matrix(block, k.IN_MATRIX, table.matrix)
            return
        matrix = device.new_matrix(shape.vocab, shape.hidden, [table])
        device.library.set_matrix(block, k.IN_MATRIX, matrix)
        device.plan.add(
            Tensor(table, ("table",)), {"table": Slot(shape.vocab, matrix=matrix, cols=shape.hidden)}
        )


def dynamic_ntk(
    length: int, *, dim: int, training_len: int, base_len: int, base: float = 10000.0
) -> tuple[float, float]:
    """Rotary base and scale of a sequence of ``length`` tokens, by TeleChat2's formula.

    ``S = max(length, training_len)``; ``alpha = max(2^ceil(log2(S / base_len) + 1) - 1, 1)``; the base grows
    by ``alpha^(dim / (dim - 2))`` and cos and sin by ``0.1 ln(S / training_len) + 1``.
    """
    span = max(length, training_len)
    alpha = max(2.0 ** math.ceil(math.log2(span / base_len) + 1.0) - 1.0, 1.0)
    scale = 0.1 * math.log(span / training_len) + 1.0 if span > training_len else 1.0
    return base * alpha ** (dim / (dim - 2)), scale
