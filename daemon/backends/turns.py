"""Who goes next among those who wait: one rule for the daemon's queue and for an engine's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, TypeVar

OLDEST_EVERY = 8
"""One turn in this many goes to whoever has waited longest, so that nobody waits for ever."""


class Claim(Protocol):
    """Somebody who waits."""

    @property
    def priority(self) -> int:
        """Smaller is more urgent."""
        ...

    @property
    def caller(self) -> str:
        """On whose behalf; callers share places evenly."""
        ...

    @property
    def number(self) -> int:
        """Increasing in order of arrival."""
        ...


ClaimT = TypeVar("ClaimT", bound=Claim)


class Turns:
    """The most urgent first; among them the caller who holds the fewest places; then the earliest."""

    def __init__(self) -> None:
        self._since_oldest = 0

    def candidates(self, waiting: Collection[ClaimT], held: Mapping[str, int]) -> list[ClaimT]:
        """Whose turn it is; then, should there be no room for that one, the most entitled.

        ``held``: places of each caller.
        """
        entitled = most_entitled(waiting, held)
        if self._since_oldest + 1 < OLDEST_EVERY:
            return [entitled]
        oldest = _oldest(waiting)
        return [oldest] if oldest is entitled else [oldest, entitled]

    def took(self, chosen: ClaimT, waiting: Collection[ClaimT]) -> bool:
        """``chosen``, still among the waiting, gets a place. ``True``: for its age."""
        oldest = chosen is _oldest(waiting)
        due = self._since_oldest + 1 >= OLDEST_EVERY
        self._since_oldest = 0 if oldest else self._since_oldest + 1
        return oldest and due


def most_entitled(waiting: Collection[ClaimT], held: Mapping[str, int]) -> ClaimT:
    """By urgency, then by the caller's share, then by arrival."""
    return min(waiting, key=lambda claim: (claim.priority, held.get(claim.caller, 0), claim.number))


def _oldest(waiting: Collection[ClaimT]) -> ClaimT:
    return min(waiting, key=lambda claim: claim.number)
