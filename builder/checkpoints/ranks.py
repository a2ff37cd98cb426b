"""Joins what several ranks hold, and shares tensors among ranks.

With a strategy file each parameter is spread as the file says. Without one a model's matrices are spread as
tensor parallelism spreads them: what makes heads, hidden units or tokens by its rows, what takes them in by
its columns; norms and the biases of the latter are the same everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from builder.checkpoints.arrangements import Replicas, cut, stacked
from builder.checkpoints.layouts.base import Role
from builder.checkpoints.layouts.detect import listed
from builder.checkpoints.layouts.packing import Facts
from builder.checkpoints.strategy import Placement, Strategy
from builder.checkpoints.views import View
from contract.faults import Fault, FaultKind

_BY_ROWS = frozenset({"embed", "head", "q", "k", "v", "gate", "up", "expert_gate", "expert_up"})
_BY_COLUMNS = frozenset({"o", "down", "expert_down"})
_OTHER = "the rank folders are of different checkpoints, or the strategy is another run's"

Roles = Mapping[Role, View]
Tensors = Mapping[str, View]


def split_axis(role: Role) -> int | None:
    """The axis along which ranks share a matrix; ``None`` when each has all of it."""
    if role.part in _BY_ROWS:
        return 0
    return 1 if role.part in _BY_COLUMNS and role.kind == "weight" else None


def join_roles(ranks: Sequence[Roles], facts: Facts, meta: bool = False) -> dict[Role, View]:
    """The whole matrices of tensor-parallel ranks. Raises ``Fault``."""
    if len(ranks) == 1:
        return dict(ranks[0])
    for number, roles in enumerate(ranks):
        if roles.keys() != ranks[0].keys():
            strange = sorted(f"{role.part} of layer {role.layer}" for role in roles.keys() ^ ranks[0].keys())
            message = f"rank {number} and rank 0 hold different tensors: {listed(strange)}"
            raise Fault(FaultKind.INVALID_MODEL, message, _OTHER)
    if facts.vocab is None:
        facts = replace(facts, vocab=_tokens(ranks))
    return {role: _join_role(role, [roles[role] for roles in ranks], facts, meta) for role in ranks[0]}


def _tokens(ranks: Sequence[Roles]) -> int:
    """The size of the vocabulary, by the rows of the head, which all ranks share."""
    heads = [view for role, view in ranks[0].items() if role.part == "head" and view.shape]
    if not heads:
        message = "the ranks have no head that tells the size of the vocabulary"
        raise Fault(FaultKind.INVALID_REQUEST, message, "name the model with --model")
    return heads[0].shape[0] * len(ranks)


def _join_role(role: Role, parts: list[View], facts: Facts, meta: bool) -> View:
    axis = split_axis(role)
    if role.part == "embed":
        axis = _embedding_axis(parts, facts, meta)
    name = f"{role.part} {role.kind}" + (f" of layer {role.layer}" if role.layer >= 0 else "")
    if axis is None:
        return _same(name, parts)
    return _joined(name, parts, axis)


def _embedding_axis(parts: list[View], facts: Facts, meta: bool) -> int | None:
    """By tokens, by width as Meta's first models, or not at all as with ``vocab_emb_dp``."""
    rows, width = parts[0].shape if len(parts[0].shape) == 2 else (0, 0)
    if meta:
        return 1 if facts.hidden is not None and width != facts.hidden else 0
    return None if rows == facts.vocab else 0


def share_roles(roles: Roles, ranks: int, facts: Facts, whole_embedding: bool) -> list[dict[Role, View]]:
    """What each of ``ranks`` ranks holds. Raises ``Fault`` when something cannot be shared evenly."""
    for count, what in ((facts.heads, "attention heads"), (facts.kv_heads, "key/value heads")):
        if count is not None and count % ranks:
            message = f"{count} {what} cannot be shared among {ranks} ranks"
            raise Fault(FaultKind.INVALID_REQUEST, message, "choose --ranks that divides them")
    shared: list[dict[Role, View]] = [{} for _ in range(ranks)]
    for role, view in roles.items():
        axis = None if role.part == "embed" and whole_embedding else split_axis(role)
        for rank in range(ranks):
            shared[rank][role] = view if axis is None else _piece(role.part, view, axis, rank, ranks)
    return shared


def _piece(name: str, view: View, axis: int, index: int, count: int) -> View:
    if axis >= len(view.shape) or view.shape[axis] % count:
        message = f"{name} of shape {list(view.shape)} cannot be split into {count} along axis {axis}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "choose another number of ranks")
    size = view.shape[axis] // count
    return cut(view, axis, index * size, size)


def join_by_strategy(ranks: Sequence[Tensors], strategy: Strategy) -> dict[str, View]:
    """The whole parameters of ranks that a strategy describes. Raises ``Fault``."""
    if len(ranks) < strategy.ranks:
        message = f"the strategy is of {strategy.ranks} ranks, the checkpoint of {len(ranks)}"
        raise Fault(FaultKind.INVALID_MODEL, message, _OTHER)
    joined: dict[str, View] = {}
    for name in dict.fromkeys(name for tensors in ranks for name in tensors):
        stages = strategy.stages_of(name)
        if not stages:
            joined[name] = next(tensors[name] for tensors in ranks if name in tensors)
            continue
        stage, size = stages[0], strategy.stage_ranks
        placement = strategy.stages[stage][name]
        joined[name] = _join_parameter(name, ranks[stage * size : (stage + 1) * size], placement)
    return joined


def _join_parameter(name: str, ranks: Sequence[Tensors], placement: Placement) -> View:
    shards: dict[tuple[int, ...], list[View]] = {}
    for rank, tensors in enumerate(ranks[: placement.ranks]):
        if name in tensors:
            shards.setdefault(placement.shard_of(rank), []).append(tensors[name])
    counts = placement.shards()
    for shard in itertools.product(*map(range, counts)):
        if shard not in shards:
            message = f"no rank holds the piece {list(shard)} of {name}"
            raise Fault(FaultKind.INVALID_MODEL, message, "fetch the whole checkpoint again")
        if any(len(view.shape) != len(counts) for view in shards[shard]):
            message = (
                f"{name} has shape {list(shards[shard][0].shape)}, the strategy splits {len(counts)} axes"
            )
            raise Fault(FaultKind.INVALID_MODEL, message, _OTHER)
    pieces = {shard: _same(name, views) for shard, views in shards.items()}
    for axis in range(len(counts) - 1, -1, -1):
        outer: dict[tuple[int, ...], list[View]] = {}
        for shard in sorted(pieces):
            outer.setdefault(shard[:axis], []).append(pieces[shard])
        pieces = {shard: _joined(name, views, axis) for shard, views in outer.items()}
    return pieces[()]


def share_by_strategy(tensors: Tensors, strategy: Strategy) -> list[dict[str, View]]:
    """What each rank of a strategy holds. Raises ``Fault``."""
    unknown = [name for stage in strategy.stages.values() for name in stage if name not in tensors]
    if unknown:
        message = f"the target strategy names {len(unknown)} parameters that are not there: {listed(unknown)}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "check --target-strategy and --to")
    shared = []
    for rank in range(strategy.ranks):
        stage, local = divmod(rank, strategy.stage_ranks)
        placements = strategy.stages.get(stage, {})
        held = {}
        for name, view in tensors.items():
            placement = placements.get(name)
            if placement is not None:
                held[name] = _shard(name, view, placement, local % placement.ranks)
            elif not strategy.stages_of(name):
                held[name] = view
        shared.append(held)
    return shared


def _shard(name: str, view: View, placement: Placement, rank: int) -> View:
    shards = zip(placement.shard_of(rank), placement.shards(), strict=True)
    for axis, (index, count) in enumerate(shards):
        view = _piece(name, view, axis, index, count)
    return view


def _same(name: str, parts: Sequence[View]) -> View:
    first = parts[0]
    if any((part.shape, part.dtype) != (first.shape, first.dtype) for part in parts):
        raise _mismatch(name, parts)
    return first if len(parts) == 1 else Replicas(name, tuple(parts))


def _joined(name: str, parts: Sequence[View], axis: int) -> View:
    others = {(part.dtype, part.shape[:axis], part.shape[axis + 1 :]) for part in parts}
    if len(others) != 1 or axis >= len(parts[0].shape):
        raise _mismatch(name, parts)
    return stacked(parts, axis)


def _mismatch(name: str, parts: Sequence[View]) -> Fault:
    shapes = listed([f"{part.dtype} {list(part.shape)}" for part in parts])
    return Fault(FaultKind.INVALID_MODEL, f"the ranks' pieces of {name} do not fit: {shapes}", _OTHER)
