"""The columns of ``logprobs`` in a completion."""

from __future__ import annotations

from typing import Any

from contract.generation import TokenLogprob


class CompletionLogprobs:
    """Formats the tokens of one choice, a piece at a time; text offsets run on between the pieces."""

    def __init__(self) -> None:
        self._offset = 0

    def take(self, entries: list[TokenLogprob]) -> dict[str, Any]:
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry.token)
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [_alternatives(entry) for entry in entries],
            "text_offset": offsets,
        }


def _alternatives(entry: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and the chosen one by their text; null for the first token of a prompt."""
    if entry.logprob is None:
        return None
    rivals = {entry.token: entry.logprob}
    for _, token, logprob in entry.top:
        # Several ids may share a text (halves of characters): the likeliest counts.
        rivals.setdefault(token, logprob)
    return rivals
