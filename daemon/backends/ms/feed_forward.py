"""Feed-forward blocks of the layer API: one, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contract.faults import Fault, FaultKind
from daemon.backends.ms import kernels as k
from daemon.backends.ms.device import Block, Device, names_of, rows_out, vector_slot
from daemon.backends.ms.shape import DecoderShape
from daemon.backends.ms.weights import Slot, Tensor


def _slots(
    device: Device, block: int, sizes: tuple[int, int], tensors: Sequence[Tensor], expert: int = -1
) -> Mapping[str, Slot]:
    """Matrices and slots of a feed-forward [hidden, inner]: the block's own, or those of one expert."""
    hidden, inner = sizes
    gate_up = device.new_matrix(inner, hidden, names_of(tensors, "gate", "up"), parts=2)
    down = device.new_matrix(hidden, inner, names_of(tensors, "down"))
    if expert >= 0:
        device.protect(gate_up, down)  # an expert's rows are not the step's
    matrices, vectors = k.MATRICES * (expert + 1), k.VECTORS * (expert + 1)
    device.library.set_matrix(block, matrices + k.IN_MATRIX, gate_up)
    device.library.set_matrix(block, matrices + k.OUT_MATRIX, down)
    return {
        "gate": Slot(rows=inner, matrix=gate_up, part=0, cols=hidden),
        "up": Slot(rows=inner, matrix=gate_up, part=1, cols=hidden),
        "down": Slot(rows=hidden, matrix=down, cols=inner),
        "gate_bias": vector_slot(block, vectors + k.IN_BIAS, inner),
        "up_bias": vector_slot(block, vectors + k.UP_BIAS, inner),
        "down_bias": vector_slot(block, vectors + k.OUT_BIAS, hidden),
    }


class FeedForward(Block):
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
        numbers = (k.FEED_FORWARD, shape.hidden, shape.inner)
        block = device.library.new_block(device.model, numbers, shape.eps, residual_scale)
        super().__init__(device, "MindPortFeedForward", block, rows_out(device, shape.hidden))
        slots = _slots(device, block, (shape.hidden, shape.inner), tensors)
        device.plan.add(Tensor(norm, ("norm",)), {"norm": vector_slot(block, k.NORM, shape.hidden)})
        for tensor in tensors:
            device.plan.add(tensor, slots)


@dataclass(frozen=True, slots=True)
class MoEOptions:
    """How a mixture chooses and joins its experts."""

    active: int
    """Experts a row is sent to: the likeliest by softmax over all."""
    inner: int | None = None
    """Width of an expert; ``None``: of the decoder's feed-forward."""
    renormalise: bool = True
    """Whether the shares of the active experts are made to sum to one."""
    residual_scale: float = 1.0


class MoE(Block):
    """``x + residual_scale * sum of share_e * expert_e(norm(x))`` over the active experts of each row.

    ``router`` names a matrix [experts, hidden]; it is kept in float32. ``experts`` has the tensors of each
    expert, with the roles of ``FeedForward``. Only the weights of experts that a row of the step chose are
    read, once.
    """

    def __init__(
        self,
        device: Device,
        shape: DecoderShape,
        norm: str,
        router: str,
        experts: Sequence[Sequence[Tensor]],
        options: MoEOptions,
    ) -> None:
        if not 1 <= options.active <= len(experts):
            message = f"{options.active} of {len(experts)} experts cannot be active"
            raise Fault(FaultKind.INVALID_MODEL, message)
        inner = shape.inner if options.inner is None else options.inner
        routing = (len(experts), options.active, options.renormalise)
        numbers = (k.MIXTURE, shape.hidden, inner, *(0,) * 5, *routing)
        block = device.library.new_block(device.model, numbers, shape.eps, options.residual_scale)
        super().__init__(device, "MindPortMixture", block, rows_out(device, shape.hidden))
        matrix = device.new_exact_matrix(len(experts), shape.hidden, router)
        device.library.set_matrix(block, k.IN_MATRIX, matrix)
        rows = Slot(rows=len(experts), matrix=matrix, cols=shape.hidden)
        device.plan.add(Tensor(norm, ("norm",)), {"norm": vector_slot(block, k.NORM, shape.hidden)})
        device.plan.add(Tensor(router, ("router",)), {"router": rows})
        for expert, tensors in enumerate(experts):
            slots = _slots(device, block, (shape.hidden, inner), tensors, expert)
            for tensor in tensors:
                device.plan.add(tensor, slots)
