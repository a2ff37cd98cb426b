"""A layout: every tensor of a checkpoint by name, and which plain matrices it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from builder.checkpoints.arrangements import Transposed, cut, stacked
from builder.checkpoints.layouts.packing import Facts, Packing, packed, unpacked
from builder.checkpoints.views import Reshaped, View
from contract.faults import Fault, FaultKind

_FIELDS = {"layer": r"(?P<layer>\d{1,6})", "expert": r"(?P<expert>\d{1,6})", "kind": r"(?P<kind>weight|bias)"}
_STACKS = ("experts", "experts_swapped")


@dataclass(frozen=True, order=True)
class Role:
    """What a plain matrix or vector is to the model."""

    layer: int
    """-1 for what is not in a layer."""
    part: str
    expert: int
    """-1 for what is not in an expert."""
    kind: str


@dataclass(frozen=True)
class Entry:
    """Tensors of one name pattern and what they hold."""

    pattern: str
    """``{layer}``, ``{expert}`` and ``{kind}`` stand for the number of each, and for weight or bias."""
    parts: tuple[str, ...]
    packing: Packing = "plain"

    @cached_property
    def expression(self) -> re.Pattern[str]:
        escaped = re.escape(self.pattern)
        for field, expression in _FIELDS.items():
            escaped = escaped.replace(re.escape(f"{{{field}}}"), expression)
        return re.compile(escaped)

    def name(self, role: Role) -> str:
        return self.pattern.format(layer=role.layer, expert=role.expert, kind=role.kind)


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint of a family."""

    name: str
    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", r"rope\.freqs", r".*\.rotary_pos_emb\.inv_freq")
    """Patterns of tensors that no network needs."""

    def find(self, tensor: str) -> tuple[Entry, Role] | None:
        """What a tensor holds; its first part stands for all."""
        for entry in self.entries:
            match = entry.expression.fullmatch(tensor)
            if match is not None:
                found = match.groupdict()
                layer, expert = (int(found.get(field, -1)) for field in ("layer", "expert"))
                return entry, Role(layer, entry.parts[0], expert, found.get("kind") or "weight")
        return None

    def is_ignored(self, tensor: str) -> bool:
        return any(re.fullmatch(pattern, tensor) for pattern in self.ignored)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """The names that do not belong to a checkpoint of this kind."""
        return [name for name in names if self.find(name) is None and not self.is_ignored(name)]

    def unpack(self, tensors: Mapping[str, View], facts: Facts) -> dict[Role, View]:
        """The plain matrices of a checkpoint. Raises ``Fault``."""
        roles: dict[Role, View] = {}
        for name, view in tensors.items():
            found = self.find(name)
            if found is not None:
                try:
                    roles.update(_plain_parts(*found, view, facts))
                except Fault as fault:
                    raise Fault(fault.kind, f"{name}: {fault.message}", fault.hint) from None
        return roles

    def pack(self, roles: Mapping[Role, View], facts: Facts) -> dict[str, View]:
        """The tensors of a checkpoint of this kind. Raises ``Fault`` when a matrix has no place there."""
        places = {part: entry for entry in self.entries for part in entry.parts}
        groups: dict[str, list[Role]] = {}
        for role in sorted(roles):
            entry = places.get(role.part)
            if entry is None or (role.kind == "bias" and "{kind}" not in entry.pattern):
                raise _no_place(self.name, role)
            groups.setdefault(entry.name(role), []).append(role)
        return {
            name: _assembled(name, places[members[0].part], {role: roles[role] for role in members}, facts)
            for name, members in groups.items()
        }


def _assembled(name: str, entry: Entry, roles: Mapping[Role, View], facts: Facts) -> View:
    """One tensor of its plain matrices. Raises ``Fault`` when one is missing."""
    first = next(iter(roles))
    dtypes = sorted({view.dtype for view in roles.values()})
    if len(dtypes) > 1:
        message = f"{name} would be put together of {' and '.join(dtypes)}"
        raise Fault(
            FaultKind.UNSUPPORTED, message, "convert all weights to one type: builder convert --dtype"
        )
    if entry.packing in _STACKS:
        return _stack_experts(entry.packing, list(roles.values()), first.kind)
    by_part = {role.part: view for role, view in roles.items()}
    missing = [part for part in entry.parts if part not in by_part]
    if missing:
        message = f"{name} cannot be put together: layer {first.layer} has no {', '.join(missing)}"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch the whole checkpoint again")
    views = [by_part[part] for part in entry.parts]
    return views[0] if entry.packing == "plain" else packed(entry.packing, entry.parts, views, facts)


def _plain_parts(entry: Entry, role: Role, view: View, facts: Facts) -> Iterator[tuple[Role, View]]:
    if entry.packing in _STACKS:
        yield from _unstack_experts(entry.packing, role, view)
        return
    views = [view] if entry.packing == "plain" else unpacked(entry.packing, entry.parts, view, facts)
    for part, plain in zip(entry.parts, views, strict=True):
        yield Role(role.layer, part, role.expert, role.kind), plain


def _stack_experts(packing: Packing, views: list[View], kind: str) -> View:
    if kind == "bias":
        count, width = len(views), views[0].elements
        return Reshaped(stacked(views), (1, count, 1, width))
    whole = stacked([Reshaped(view, (1, *view.shape)) for view in views])
    return Transposed(whole) if packing == "experts_swapped" else whole


def _unstack_experts(packing: Packing, role: Role, view: View) -> Iterator[tuple[Role, View]]:
    axis = 1 if role.kind == "bias" else 0
    if len(view.shape) != (4 if role.kind == "bias" else 3):
        message = f"the experts' {role.part} of layer {role.layer} has shape {list(view.shape)}"
        raise Fault(FaultKind.INVALID_MODEL, message, "a stack of experts has three axes, their biases four")
    whole = Transposed(view) if packing == "experts_swapped" and role.kind == "weight" else view
    for expert in range(view.shape[axis]):
        one = cut(whole, axis, expert, 1)
        yield (
            Role(role.layer, role.part, expert, role.kind),
            Reshaped(one, _expert_shape(one.shape, role.kind)),
        )


def _expert_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    return shape[3:] if kind == "bias" else shape[1:]


def _no_place(layout: str, role: Role) -> Fault:
    where = f" of layer {role.layer}" if role.layer >= 0 else ""
    message = f"a {layout} checkpoint has no place for the {role.kind} {role.part}{where}"
    return Fault(FaultKind.UNSUPPORTED, message, "choose another --to")
