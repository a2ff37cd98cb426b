"""Order and source -> every file of the result and its tensors. Reads headers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from builder.checkpoints.arrangements import Cast
from builder.checkpoints.dtypes import DTYPES, FLOATS
from builder.checkpoints.layouts.base import Layout, Role
from builder.checkpoints.layouts.detect import detect, layouts_of, listed, without_training_state
from builder.checkpoints.layouts.families import HF
from builder.checkpoints.layouts.packing import Facts
from builder.checkpoints.ranks import join_by_strategy, join_roles, share_by_strategy, share_roles
from builder.checkpoints.readers.source import Source
from builder.checkpoints.safetensors_header import TensorEntry
from builder.checkpoints.strategy import read_strategy
from builder.checkpoints.views import View
from builder.checkpoints.weight_files import check_shapes
from builder.conversion.order import ConvertOrder
from builder.conversion.subject import Subject
from contract.faults import Fault, FaultKind, fault_of_problems

Key = TypeVar("Key")
_NO_FLOATS = "take unquantized weights; integers cannot be converted"


@dataclass(frozen=True)
class Conversion:
    """The weights in their new form."""

    ranks: tuple[Mapping[str, View], ...]
    """One table of tensors for each rank; one where they are not shared."""
    found: str
    """What the source is, in words."""
    left_out: tuple[str, ...]
    """Tensors of the source that are no weights."""


def plan_conversion(source: Source, subject: Subject, order: ConvertOrder) -> Conversion:
    """Decide the tensors of the result. Raises ``Fault``."""
    family, facts = (subject.family.name if subject.family else None), subject.facts
    known = [without_training_state(tensors) for tensors in source.ranks]
    if order.keeps_names(len(source.ranks)):
        whole = _whole_by_name(source.ranks, order)
        return Conversion(_shared(whole, order), source.form, ())
    left_out = known[0][1]
    if order.strategy is not None:
        ranks: Sequence[Mapping[str, View]] = [without_training_state(_whole_by_name(source.ranks, order))[0]]
    else:
        ranks = [tensors for tensors, _ in known]
    found = detect(ranks[0], family, facts.of_rank(len(ranks)))
    layout = found[0][1]
    unpacked = [layout.unpack(tensors, facts.of_rank(len(ranks))) for tensors in ranks]
    roles = _cast(join_roles(unpacked, facts, source.meta), order.dtype)
    check_weights(roles, subject, str(source.path))
    if order.dtype is not None and any(view.dtype == "F64" for view in roles.values()):
        message = f"{source.path} holds weights of type F64, which --dtype does not convert"
        raise Fault(FaultKind.UNSUPPORTED, message, "leave out --dtype")
    target = _target_layout(order, found, family) if order.to is not None else layout
    tables = _packed(roles, target, facts, order)
    ignored = [name for name in ranks[0] if layout.is_ignored(name)]
    return Conversion(
        tuple(tables), f"{source.form}, {found[0][0]} in {layout.name} form", (*left_out, *ignored)
    )


def _packed(
    roles: Mapping[Role, View], layout: Layout, facts: Facts, order: ConvertOrder
) -> list[Mapping[str, View]]:
    if order.target_strategy is not None:
        whole = layout.pack(roles, facts)
        return list(share_by_strategy(whole, read_strategy(order.target_strategy)))
    if order.ranks is None or order.ranks == 1:
        return [layout.pack(roles, facts)]
    shared = share_roles(roles, order.ranks, facts, order.vocab_emb_dp)
    return [layout.pack(held, facts.of_rank(order.ranks)) for held in shared]


def _whole_by_name(ranks: Sequence[Mapping[str, View]], order: ConvertOrder) -> Mapping[str, View]:
    if order.strategy is None:
        return ranks[0]
    return join_by_strategy(ranks, read_strategy(order.strategy))


def _shared(whole: Mapping[str, View], order: ConvertOrder) -> tuple[Mapping[str, View], ...]:
    tables: Sequence[Mapping[str, View]] = [whole]
    if order.target_strategy is not None:
        tables = share_by_strategy(whole, read_strategy(order.target_strategy))
    return tuple(_cast(table, order.dtype) for table in tables)


def _target_layout(order: ConvertOrder, found: Sequence[tuple[str, Layout]], family: str | None) -> Layout:
    name = order.to or HF
    targets = {
        candidate: layouts_of(candidate)[candidate].named(name, order.qkv_concat, order.gmm)
        for candidate, _ in found
    }
    chosen = [target for target in targets.values() if target is not None]
    if not chosen:
        message = f"there are no {name} names for the family {', '.join(targets)}"
        raise Fault(FaultKind.UNSUPPORTED, message, "choose another --to")
    if family is None and any(target != chosen[0] for target in chosen):
        message = f"the names fit several families: {', '.join(targets)}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "say which it is: --model NAME")
    return chosen[0]


def check_weights(roles: Mapping[Role, View], subject: Subject, where: str) -> None:
    """Raises ``Fault`` for odd dtypes, missing parts and, where the model is known, wrong shapes."""
    if not roles:
        raise Fault(FaultKind.INVALID_MODEL, f"{where} holds no weights", "check the path")
    odd = sorted({view.dtype for view in roles.values() if view.dtype not in (*FLOATS, "F64")})
    if odd:
        message = f"{where} holds weights of type {', '.join(odd)}"
        raise Fault(FaultKind.UNSUPPORTED, message, _NO_FLOATS)
    if subject.family is None or not subject.complete:
        _check_layers(roles, where)
        return
    packed = layouts_of(subject.family.name)[subject.family.name].hf.pack(roles, subject.facts)
    entries = {name: TensorEntry(name, view.dtype, view.shape, 0, 0) for name, view in packed.items()}
    problems = check_shapes(entries, subject.family, subject.values)
    if problems:
        raise fault_of_problems(FaultKind.INVALID_MODEL, where, problems)


def _check_layers(roles: Mapping[Role, View], where: str) -> None:
    """All layers must be there and hold the same parts."""
    layers: dict[int, set[tuple[str, int, str]]] = {}
    for role in roles:
        if role.layer >= 0:
            layers.setdefault(role.layer, set()).add((role.part, role.expert, role.kind))
    missing = [f"layer {layer}" for layer in range(max(layers, default=-1) + 1) if layer not in layers]
    expected = set().union(*layers.values())
    for layer, held in sorted(layers.items()):
        missing.extend(f"{part} {kind} of layer {layer}" for part, _, kind in sorted(expected - held))
    if missing:
        message = f"{where} lacks {len(missing)} parts: {listed(missing)}"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch the whole checkpoint again")


def _cast(tensors: Mapping[Key, View], dtype: str | None) -> Mapping[Key, View]:
    if dtype is None:
        return tensors
    code = DTYPES[dtype]
    return {
        name: Cast(view, code) if view.dtype in FLOATS and view.dtype != code else view
        for name, view in tensors.items()
    }
