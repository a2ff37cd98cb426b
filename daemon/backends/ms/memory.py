"""How much of the memory there is becomes KV cache, and whether the weights fit at all."""

from __future__ import annotations

from contract.faults import Fault, FaultKind
from contract.memory import Overhead, Room, available_memory

_SHARE = 0.4
"""Of what the weights leave, for KV cache, when nobody says how much."""
_MOST = 0.8
"""The same, when less would not hold one sequence of full length."""
_MINDSPORE = 450 << 20
"""Memory that MindSpore takes in a worker, whatever the model."""
_MINDSPORE_VIRTUAL = 2600 << 20
"""Addresses that it takes: stacks and heaps of its threads, mostly untouched."""


def room_for_model(others: int) -> Room:
    """What a model may take in a process that has not started MindSpore yet.

    ``others``: what models loaded before have been promised and do not occupy yet.
    """
    overhead = Overhead(own=_MINDSPORE, own_virtual=_MINDSPORE_VIRTUAL, others=others)
    return available_memory(overhead=overhead)


def plan_blocks(
    *, room: Room, weight_bytes: int, block_bytes: int, wanted_blocks: int, least_blocks: int
) -> int:
    """KV blocks for a model whose weights are not loaded yet.

    ``wanted_blocks``: enough for all sequences at full length; ``least_blocks``: for one. Raises ``Fault``.
    """
    left = room.bytes - weight_bytes
    blocks = min(wanted_blocks, int(left * _SHARE) // block_bytes)
    if blocks < least_blocks <= int(left * _MOST) // block_bytes:
        return least_blocks
    if blocks < least_blocks:
        cache = least_blocks * block_bytes
        raise _too_large(room, weight_bytes, cache, f"one sequence of full length needs {_mib(cache)}")
    return blocks


def check_fit(room: Room, weight_bytes: int, kv_bytes: int) -> None:
    """Raises ``Fault`` when a KV cache of the size asked for leaves no room for the weights."""
    if weight_bytes + kv_bytes > room.bytes:
        raise _too_large(room, weight_bytes, kv_bytes, f"the settings give {_mib(kv_bytes)}")


def _too_large(room: Room, weight_bytes: int, kv_bytes: int, why: str) -> Fault:
    message = (
        f"the weights need {_mib(weight_bytes)} and {why} of KV cache; "
        f"{_mib(room.bytes)} are available, bound by {room.bound}"
    )
    hint = (
        "free memory or raise that limit, use fewer KV blocks or a lower context_len, "
        "or a smaller dtype (--ms-dtype int8)"
    )
    details = {
        "available_bytes": room.bytes,
        "bound": room.bound,
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
    }
    return Fault(FaultKind.OUT_OF_MEMORY, message, hint, details)


def _mib(amount: int) -> str:
    return f"{amount / 2**20:,.0f} MiB"
