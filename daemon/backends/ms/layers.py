"""The layer API, from which network files are built. Public and versioned: they outlive releases.

A network is a MindSpore Cell over these blocks. Each block is one node of the compiled graph, a fused
operator of the kernels, and declares which checkpoint tensors it reads. Activations are float32 [rows,
hidden]; ``step`` is passed through unchanged. The API only grows: what a network file could use, it always
can.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore

from daemon.backends.ms import kernels as k
from daemon.backends.ms.attention import AttentionBlock, AttentionOptions
from daemon.backends.ms.device import Block, Device, Operator, rows_out, vector_slot
from daemon.backends.ms.feed_forward import FeedForward, MoE, MoEOptions
from daemon.backends.ms.rotary import Rope, alibi_slopes, dynamic_ntk
from daemon.backends.ms.shape import DecoderShape
from daemon.backends.ms.weights import Slot, Tensor

LAYER_API_VERSION = 2
"""A network file names the version it was written for; all up to this one can be used."""

__all__ = [
    "LAYER_API_VERSION",
    "AttentionBlock",
    "AttentionOptions",
    "Block",
    "DecoderShape",
    "Device",
    "Embedding",
    "FeedForward",
    "LMHead",
    "MoE",
    "MoEOptions",
    "Rope",
    "Stack",
    "Tensor",
    "alibi_slopes",
    "dynamic_ntk",
]


class Embedding(Block):
    """Tokens int32 [rows] to their vectors, times ``scale``."""

    def __init__(self, device: Device, shape: DecoderShape, table: str, *, scale: float = 1.0) -> None:
        numbers = (k.EMBEDDING, shape.hidden, shape.vocab)
        block = device.library.new_block(device.model, numbers, shape.eps, scale)
        super().__init__(device, "MindPortEmbedding", block, rows_out(device, shape.hidden))
        self.table = table
        self.matrix = device.new_matrix(shape.vocab, shape.hidden, [table], use="table")
        device.library.set_matrix(block, k.IN_MATRIX, self.matrix)
        slot = Slot(rows=shape.vocab, matrix=self.matrix, cols=shape.hidden)
        device.plan.add(Tensor(table, ("table",)), {"table": slot})


class Stack(Operator):
    """Blocks from hidden to hidden, one after the other, as one node of the graph.

    Launching a node costs some microseconds, which a step of few tokens feels. Since version 2.
    """

    def __init__(self, device: Device, shape: DecoderShape, blocks: Sequence[Block]) -> None:
        handles = [block.block for block in blocks]
        super().__init__(device, "MindPortStack", handles, rows_out(device, shape.hidden))


class LMHead(Block):
    """Final norm and logits, times ``logit_scale``, of the rows the step asks for.

    ``table`` names the head's tensor, or is the ``Embedding`` whose table it shares; with ``unit_rows`` each
    of its rows counts as divided by its length. The logits stay in the library, where the runner reads them;
    the node's output is how many rows there are. Logits that are not finite make their row's first one NaN.
    """

    def __init__(
        self,
        device: Device,
        shape: DecoderShape,
        norm: str,
        table: str | Embedding,
        *,
        logit_scale: float = 1.0,
        unit_rows: bool = False,
    ) -> None:
        numbers = (k.HEAD, shape.hidden, shape.vocab, *(0,) * 8, unit_rows)
        block = device.library.new_block(device.model, numbers, shape.eps, logit_scale)
        super().__init__(device, "MindPortHead", block, ((1,), mindspore.int32))
        slots = {"norm": vector_slot(block, k.NORM, shape.hidden)}
        device.plan.add(Tensor(norm, ("norm",)), slots)
        if isinstance(table, Embedding):
            device.library.set_matrix(block, k.IN_MATRIX, table.matrix)
            return
        matrix = device.new_matrix(shape.vocab, shape.hidden, [table], use="head")
        if unit_rows:
            device.protect(matrix)  # its lengths would have to change with it
        device.library.set_matrix(block, k.IN_MATRIX, matrix)
        device.plan.add(
            Tensor(table, ("table",)), {"table": Slot(shape.vocab, matrix=matrix, cols=shape.hidden)}
        )
