"""Works out which layout a checkpoint has, from the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from builder.checkpoints.layouts.base import Layout
from builder.checkpoints.layouts.families import LAYOUTS, FamilyLayouts
from builder.checkpoints.layouts.packing import Facts
from builder.checkpoints.views import View
from contract.faults import Fault, FaultKind

_TRAINING = re.compile(
    r"(adam_[mv]|moment[12s]?|accu_grads|exp_avg(_sq)?|optimizer)\..+"
    r"|epoch_num|step_num|global_step|current_iterator_step|last_overflow_iterator_step|learning_rate"
    r"|scale_sense|loss_scale|beta[12]_power|data_sink_size"
)
"""What a training run saves beside the weights."""

_SHOWN = 4


def without_training_state(tensors: Mapping[str, View]) -> tuple[dict[str, View], list[str]]:
    """The weights, and the names of what is for resuming a training run only."""
    left_out = [name for name in tensors if _TRAINING.fullmatch(name)]
    return {name: view for name, view in tensors.items() if not _TRAINING.fullmatch(name)}, left_out


def layouts_of(family: str | None) -> Mapping[str, FamilyLayouts]:
    """The family's layouts, or all families' when nobody said which it is. Raises ``Fault``."""
    if family is None:
        return LAYOUTS
    if family not in LAYOUTS:
        message = f"checkpoints of the family {family} cannot be converted"
        raise Fault(FaultKind.UNSUPPORTED, message, f"families that can: {', '.join(LAYOUTS)}")
    return {family: LAYOUTS[family]}


def detect(tensors: Mapping[str, View], family: str | None, facts: Facts) -> list[tuple[str, Layout]]:
    """Every family and layout that knows all names. Raises ``Fault`` when there is none."""
    known = layouts_of(family)
    best: tuple[int, str, Layout, list[str]] | None = None
    found = []
    for name, layouts in known.items():
        for layout in layouts.all():
            unknown = layout.unknown(tensors)
            if not unknown and _experts_fit(layout, tensors, facts):
                found.append((name, layout))
                break
            if best is None or len(unknown) < best[0]:
                best = (len(unknown), name, layout, unknown)
    if found or best is None:
        return found
    raise _unknown_names(best[1:], len(tensors))


def _experts_fit(layout: Layout, tensors: Mapping[str, View], facts: Facts) -> bool:
    """Whether stacked experts lie the way this layout has them; names do not tell."""
    if facts.hidden is None:
        return True
    for name, view in tensors.items():
        found = layout.find(name)
        if found is None or found[0].packing not in ("experts", "experts_swapped") or len(view.shape) != 3:
            continue
        outer, inner = view.shape[1:]
        if found[0].parts[0] == "expert_down":
            outer, inner = inner, outer
        if outer != inner:
            return (facts.hidden == inner) == (found[0].packing == "experts")
    return True


def _unknown_names(best: tuple[str, Layout, list[str]], count: int) -> Fault:
    family, layout, unknown = best
    form = f"of a {family} checkpoint in {layout.name} form"
    message = f"{len(unknown)} of {count} tensors are not {form}: {listed(unknown)}"
    hint = "check --model; names can also be kept as they are: leave out --to"
    return Fault(FaultKind.INVALID_MODEL, message, hint)


def listed(names: Collection[str] | Iterable[str]) -> str:
    """A few names and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
