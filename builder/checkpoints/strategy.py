"""Reads MindSpore's strategy files: how each parameter is spread over the ranks of a stage.

Layout of the protobuf: ``ParallelStrategyMap { parallel_strategy_item = 2; parallel_layout_item = 3 }``,
``ParallelLayoutItem { param_name = 1; parallel_layouts = 2 }`` and ``ParallelLayouts { dev_matrix = 1;
tensor_map = 2; opt_weight_shard_step = 6; opt_weight_shard_size = 7 }``. The devices of a stage form a grid;
a parameter's axis is split along the grid's axis that its map names, counted from the last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.checkpoints.wire import Field, FileBytes, MalformedError, fields, numbers, signed, text
from contract.faults import Fault, FaultKind

_MAX_AXES = 32
_MAX_NAME_BYTES = 4096
_STAGED = re.compile(r"(\d+)-(.+)")


@dataclass(frozen=True)
class Placement:
    """How one parameter is spread over the ranks of a stage."""

    grid: tuple[int, ...]
    """Devices along each axis of their grid; ranks count up along the last first."""
    axes: tuple[tuple[int, ...], ...]
    """For each axis of the parameter the grid's axes that split it, the coarsest first."""
    optimizer_shards: int = 0
    """Further pieces of the first axis, among ranks that would hold the same."""

    @property
    def ranks(self) -> int:
        return math.prod(self.grid)

    def shards(self) -> tuple[int, ...]:
        """Into how many pieces each axis is split."""
        pieces = [math.prod(self.grid[axis] for axis in axes) for axes in self.axes]
        if self.optimizer_shards and pieces:
            pieces[0] *= self.optimizer_shards
        return tuple(pieces)

    def shard_of(self, rank: int) -> tuple[int, ...]:
        """Which piece of each axis a rank of the stage holds."""
        place, rest = [0] * len(self.grid), rank
        for axis in range(len(self.grid) - 1, -1, -1):
            rest, place[axis] = divmod(rest, self.grid[axis])
        shard = []
        for axes in self.axes:
            index = 0
            for axis in axes:
                index = index * self.grid[axis] + place[axis]
            shard.append(index)
        if self.optimizer_shards and shard:
            shard[0] = shard[0] * self.optimizer_shards + self._replica(place) % self.optimizer_shards
        return tuple(shard)

    def _replica(self, place: list[int]) -> int:
        """The rank's number among those that hold the same piece."""
        used = {axis for axes in self.axes for axis in axes}
        number = 0
        for axis, size in enumerate(self.grid):
            if axis not in used:
                number = number * size + place[axis]
        return number


@dataclass(frozen=True)
class Strategy:
    """The placements of all parameters, by pipeline stage."""

    stages: Mapping[int, Mapping[str, Placement]]

    @property
    def stage_ranks(self) -> int:
        """Ranks of one stage."""
        return max(
            placement.ranks for placements in self.stages.values() for placement in placements.values()
        )

    @property
    def ranks(self) -> int:
        return self.stage_ranks * (max(self.stages) + 1)

    def stages_of(self, name: str) -> list[int]:
        """The stages that hold a parameter."""
        return [stage for stage, placements in sorted(self.stages.items()) if name in placements]


def read_strategy(path: Path) -> Strategy:
    """A merged strategy file, or the folder of all ranks' files. Raises ``Fault``."""
    files = sorted(path.glob("*.ckpt")) if path.is_dir() else [path]
    if not files:
        raise Fault(FaultKind.NOT_FOUND, f"{path} holds no strategy files", "check --strategy")
    stages: dict[int, dict[str, Placement]] = {}
    for file in files:
        try:
            with FileBytes(file) as data:
                found = _read(data)
        except MalformedError as error:
            message = f"{file} is not a strategy file of MindSpore: it {error}"
            raise Fault(
                FaultKind.INVALID_MODEL, message, "name the folder output/strategy of the run"
            ) from None
        except OSError as error:
            message = f"{file} cannot be read: {error.strerror}"
            raise Fault(FaultKind.INVALID_MODEL, message, "check --strategy") from None
        for (stage, name), placement in found.items():
            stages.setdefault(stage, {}).setdefault(name, placement)
    if not stages:
        message = f"{path} says nothing of any parameter"
        raise Fault(FaultKind.INVALID_MODEL, message, "name the folder output/strategy of the run")
    return Strategy(stages)


def _read(data: FileBytes) -> dict[tuple[int, str], Placement]:
    stage, found = 0, dict[str, Placement]()
    for field in fields(data, 0, data.size):
        if field.number == 2 and field.end > field.start:
            stage = _stage(data, field)
        elif field.number == 3 and field.end > field.start:
            name, placement = _item(data, field)
            found[name] = placement
    staged = {name: _STAGED.fullmatch(name) for name in found}
    return {
        (int(match[1]), match[2]) if (match := staged[name]) else (stage, name): placement
        for name, placement in found.items()
    }


def _stage(data: FileBytes, item: Field) -> int:
    for field in fields(data, item.start, item.end):
        if field.number == 2:
            for inner in fields(data, field.start, field.end):
                if inner.number == 1:
                    return min(inner.value, 2**31)
    return 0


def _item(data: FileBytes, item: Field) -> tuple[str, Placement]:
    name, placement = "", None
    for field in fields(data, item.start, item.end):
        if field.number == 1:
            name = text(data, field, _MAX_NAME_BYTES)
        elif field.number == 2:
            placement = _placement(data, field)
    if not name or placement is None:
        raise MalformedError("has a layout without name or content")
    return name, placement


def _placement(data: FileBytes, item: Field) -> Placement:
    grid: tuple[int, ...] = ()
    maps: list[tuple[int, ...]] = []
    step = shards = 0
    for field in fields(data, item.start, item.end):
        if field.number == 1:
            grid = _dims(data, field)
        elif field.number == 2:
            maps.append(_dims(data, field))
        elif field.number == 6:
            step = signed(field.value)
        elif field.number == 7:
            shards = signed(field.value)
    axes: Iterable[tuple[int, ...]] = maps[0:1] and ((value,) for value in maps[0])
    if len(maps) > 1:
        axes = (found for found in maps if found)
    return _checked(grid, tuple(axes), shards if step else 0)


def _dims(data: FileBytes, item: Field) -> tuple[int, ...]:
    values: list[int] = []
    for field in fields(data, item.start, item.end):
        if field.number == 1:
            values.extend(signed(value) for value in numbers(data, field))
        if len(values) > _MAX_AXES:
            raise MalformedError(f"has more than {_MAX_AXES} axes")
    return tuple(values)


def _checked(grid: tuple[int, ...], maps: tuple[tuple[int, ...], ...], shards: int) -> Placement:
    if any(not 0 < size <= 2**20 for size in grid) or math.prod(grid) > 2**20:
        raise MalformedError("has an impossible grid of devices")
    axes = tuple(tuple(len(grid) - 1 - value for value in values if value != -1) for values in maps)
    used = [axis for found in axes for axis in found]
    if any(not 0 <= axis < len(grid) for axis in used) or len(set(used)) != len(used):
        raise MalformedError("maps a parameter to an axis that the grid does not have")
    placement = Placement(grid, axes)
    free = placement.ranks // max(1, math.prod(placement.shards()))
    shards = free if shards == -1 else shards
    if shards < 0 or (shards and free % shards):
        raise MalformedError("shares a parameter among more optimizers than there are")
    return Placement(grid, axes, shards if shards > 1 else 0)
