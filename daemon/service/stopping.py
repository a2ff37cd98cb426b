"""Stop strings in a text that arrives in parts: nothing that may be the start of one is let out early."""

from __future__ import annotations

import re
from collections.abc import Sequence


class StopFinder:
    """One per answer. After ``match`` is set nothing more comes out."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._pattern = re.compile("|".join(map(re.escape, stops)))
        self._prefixes = frozenset(stop[:end] for stop in stops for end in range(1, len(stop)))
        self._longest = max(map(len, stops)) - 1
        self._include_stop = include_stop
        self._held = ""
        self.match: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if self.match is not None:
            return ""
        text = self._held + text
        found = self._pattern.search(text)
        if found:
            self.match, self._held = found[0], ""
            return text[: found.end() if self._include_stop else found.start()]
        size = min(len(text), self._longest)
        while size and text[-size:] not in self._prefixes:
            size -= 1
        cut = len(text) - size
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, when the answer has ended without a match."""
        held, self._held = self._held, ""
        return held
