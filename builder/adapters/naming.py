"""Brings an adapter of mindformers' names to HuggingFace's.

The rows of ``B`` lie as those of the matrix it changes, so they are unpacked and packed as that matrix is.
Where one matrix of HuggingFace's holds several of mindformers', their halves are put side by side: those of
``A`` below one another, and of ``B`` each in columns of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from builder.adapters.adapter import Adapter, Change, LowRank
from builder.checkpoints.layouts.base import Entry, Layout, Role
from builder.checkpoints.layouts.families import LAYOUTS
from builder.checkpoints.layouts.packing import KEY, QUERY, VALUE, Facts, packed
from builder.checkpoints.views import View
from builder.conversion.subject import Subject, facts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from builder.adapters.adapter import Floats


@dataclass(frozen=True)
class _Held(View):
    """A matrix in memory."""

    values: Floats
    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.values.shape

    def fill(self, first: int, out: NDArray[Any]) -> None:
        out[...] = self.values.view("<u4")[first : first + len(out)]


def with_hf_names(adapter: Adapter, base: Subject) -> Adapter:
    """The adapter under the names of the base's tensors, as far as they are known. Raises ``Fault``."""
    family = base.family
    if family is None or family.name not in LAYOUTS:
        return adapter
    layouts = LAYOUTS[family.name]
    low_rank = {name: change for name, change in adapter.changes.items() if isinstance(change, LowRank)}
    if len(low_rank) < len(adapter.changes) or not layouts.hf.unknown(low_rank):
        return adapter
    layout = next((one for one in layouts.all() if not one.unknown(low_rank)), None)
    if layout is None:
        return adapter
    return replace(adapter, changes=_renamed(low_rank, (layout, layouts.hf), facts_of(family, base.values)))


def _renamed(
    changes: Mapping[str, LowRank], layouts: tuple[Layout, Layout], facts: Facts
) -> dict[str, Change]:
    source, target = layouts
    plain: dict[Role, LowRank] = {}
    for name, change in changes.items():
        for role, view in source.unpack({name: _Held(change.b)}, facts).items():
            plain[role] = replace(change, b=_floats(view))
    places = {part: entry for entry in target.entries for part in entry.parts}
    groups: dict[str, dict[str, LowRank]] = {}
    for role, change in plain.items():
        groups.setdefault(places[role.part].name(role), {})[role.part] = change
    joined = {}
    for name, group in groups.items():
        entry = places[next(iter(group))]
        ordered = {part: group[part] for part in entry.parts if part in group}
        joined[name] = _joined(entry, ordered, facts)
    return dict(sorted(joined.items()))


def _joined(entry: Entry, group: Mapping[str, LowRank], facts: Facts) -> LowRank:
    import numpy as np

    first = next(iter(group.values()))
    if entry.packing == "plain":
        return first
    shared = all(change.a is first.a for change in group.values())
    stacked = first.a if shared else np.concatenate([change.a for change in group.values()])
    views: list[View] = []
    column = 0
    for part in entry.parts:
        change = group.get(part)
        rows = len(change.b) if change else _rows(part, group, facts)
        whole = np.zeros((rows, len(stacked)), np.float32)
        if change is not None:
            start = 0 if shared else column
            whole[:, start : start + len(change.a)] = change.b * np.float32(change.scale / first.scale)
            column += len(change.a)
        views.append(_Held(whole))
    return LowRank(stacked, _floats(packed(entry.packing, entry.parts, views, facts)), first.scale)


def _rows(part: str, group: Mapping[str, LowRank], facts: Facts) -> int:
    """Of a part that the adapter leaves alone."""
    if part in (QUERY, KEY, VALUE):
        heads, kv_heads, width = facts.attention()
        return (heads if part == QUERY else kv_heads) * width
    return len(next(iter(group.values())).b)


def _floats(view: View) -> Floats:
    import numpy as np

    raw = np.concatenate([chunk.reshape(-1) for chunk in view.chunks()])
    values: Floats = raw.view(np.float32).reshape(view.shape)
    return values
