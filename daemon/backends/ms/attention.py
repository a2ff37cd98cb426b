"""The attention block of the layer API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from daemon.backends.ms import kernels as k
from daemon.backends.ms.device import Block, Device, names_of, rows_out, vector_slot
from daemon.backends.ms.shape import DecoderShape
from daemon.backends.ms.weights import Slot, Tensor


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What distinguishes the attention of some families."""

    rotary_dim: int | None = None
    """How many first dimensions of a head turn with the position, half-split; ``None``: all, 0: none."""
    slopes: Sequence[float] = ()
    """ALiBi: ``slope * (key position - query position)`` is added to the scores, one slope a head."""
    residual_scale: float = 1.0
    """Multiplies the branch before it is added to the residual stream."""
    rotary_factors: Sequence[float] = ()
    """What each of the ``rotary_dim / 2`` frequencies is divided by; empty: by nothing."""
    adjacent_pairs: bool = False
    """The checkpoint turns dimensions 2i and 2i + 1 together: its rows are reordered as they are loaded."""
    window: int | None = None
    """How many positions a token sees, its own included; ``None``: all before it."""


class AttentionBlock(Block):
    """``x + residual_scale * o(attention(norm(x)))`` over the paged cache: causal, grouped heads.

    Roles of ``tensors``: q, k, v, o and q_bias, k_bias, v_bias, o_bias; q_norm and k_norm are RMSNorms of
    each head [head_dim] before it turns.
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
        heads = (shape.heads, shape.kv_heads, shape.head_dim, rotary, options.window or 0)
        numbers = (k.ATTENTION, shape.hidden, 0, *heads)
        block = device.library.new_block(device.model, numbers, shape.eps, options.residual_scale)
        super().__init__(device, "MindPortAttention", block, rows_out(device, shape.hidden))
        for slot, values in ((k.SLOPES, options.slopes), (k.ROTARY_FACTORS, options.rotary_factors)):
            if values:
                device.library.set_vector(block, slot, np.array(values, np.float32), size=len(values))
        slots = self._slots(device, shape, tensors)
        if options.adjacent_pairs:
            pairs = {role: replace(slots[role], pairs=(shape.head_dim, rotary)) for role in _TURNED}
            slots = {**slots, **pairs}
        device.plan.add(Tensor(norm, ("norm",)), slots)
        for tensor in tensors:
            device.plan.add(tensor, slots)

    def _slots(self, device: Device, shape: DecoderShape, tensors: Sequence[Tensor]) -> Mapping[str, Slot]:
        library, hidden = device.library, shape.hidden
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        width = q + 2 * kv
        projection = device.new_matrix(width, hidden, names_of(tensors, "q", "k", "v"))
        out = device.new_matrix(hidden, q, names_of(tensors, "o"))
        library.set_matrix(self.block, k.IN_MATRIX, projection)
        library.set_matrix(self.block, k.OUT_MATRIX, out)
        places = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}
        slots = {
            "norm": vector_slot(self.block, k.NORM, hidden),
            "o": Slot(rows=hidden, matrix=out, cols=q),
            "o_bias": vector_slot(self.block, k.OUT_BIAS, hidden),
            "q_norm": vector_slot(self.block, k.QUERY_NORM, shape.head_dim),
            "k_norm": vector_slot(self.block, k.KEY_NORM, shape.head_dim),
        }
        for role, (first, rows) in places.items():
            slots[role] = Slot(rows=rows, first=first, matrix=projection, cols=hidden)
            slots[f"{role}_bias"] = vector_slot(self.block, k.IN_BIAS, rows, first=first, size=width)
        return slots


_TURNED = ("q", "k", "q_bias", "k_bias", "q_norm", "k_norm")
"""Roles whose rows are dimensions that turn."""
