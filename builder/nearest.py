"""Finds the key somebody probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key most like ``key``, or ``None`` when nothing comes close."""
    folded = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(key.lower(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """The remedy for an unknown key."""
    found = nearest(key, known)
    return f"did you mean {found}?" if found else "remove it"
