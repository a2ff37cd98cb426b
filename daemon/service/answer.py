"""One answer: token events of the engine become deltas of text, ids and log-probabilities.

Created for each of a request's ``n`` answers; knows nothing of queues or metrics.
"""

from __future__ import annotations

from collections.abc import Iterable

from contract.generation import Delta, FinishReason, GenerateRequest, TokenLogprob
from daemon.backends.base import TokenChoice, TokenEvent, TokenSampling
from daemon.service.detokenise import detokeniser
from daemon.service.stopping import StopFinder
from daemon.service.tokenizer import TextTokenizer


class Answer:
    """Turns events into deltas until ``finished``."""

    def __init__(
        self, request: GenerateRequest, sampling: TokenSampling, tokenizer: TextTokenizer | None, index: int
    ) -> None:
        self.index = index
        self._tokenizer = tokenizer
        self._text = (
            detokeniser(tokenizer, skip_special_tokens=request.skip_special_tokens) if tokenizer else None
        )
        asked = request.sampling
        stops = asked.stop if self._text else ()
        self._stops = StopFinder(stops, include_stop=asked.include_stop) if stops else None
        self._min_tokens = sampling.min_tokens
        self._wants_logprobs = sampling.logprobs is not None
        self._request_stop_ids = frozenset(asked.stop_token_ids)
        self._include_stop = asked.include_stop
        self._shows_end = not request.skip_special_tokens
        self.tokens = 0
        self.finished = False

    def add(self, event: TokenEvent) -> Delta:
        """The delta of one event; after a stop string the rest of the event is dropped."""
        ids, text = self._read(event)
        self.tokens += len(ids)
        logprobs = None
        if self._wants_logprobs and event.choices is not None:
            logprobs = [token_logprob(choice, self._tokenizer) for choice in event.choices[: len(ids)]]
        reason: FinishReason | None = None
        match: str | int | None = None
        if self._stops and self._stops.match is not None:
            reason, match = "stop_string", self._stops.match
        elif event.finish is not None:
            reason = event.finish
            text += self._flush()
            if self._stops and self._stops.match is not None:
                reason, match = "stop_string", self._stops.match
            elif reason == "stop" and ids and ids[-1] in self._request_stop_ids:
                match = ids[-1]
        self.finished = reason is not None
        return Delta(
            text=text,
            token_ids=ids,
            index=self.index,
            logprobs=logprobs,
            finish_reason=reason,
            stop_match=match,
        )

    def _read(self, event: TokenEvent) -> tuple[list[int], str]:
        """The event's ids that belong to the answer, and the text that may be shown."""
        ids = event.token_ids
        if self._text is None:
            return ids, ""
        visible = ids[:-1] if event.finish == "stop" and ids and self._hides(ids[-1]) else ids
        if self._stops is None:
            return ids, self._text.push(visible)
        parts: list[str] = []
        for position, token_id in enumerate(visible):
            text = self._text.push((token_id,))
            # Stop strings end nothing before min_tokens, so until then text passes unsearched.
            searched = self.tokens + position + 1 > self._min_tokens
            parts.append(self._stops.push(text) if searched else text)
            if self._stops.match is not None:
                return ids[: position + 1], "".join(parts)
        return ids, "".join(parts)

    def _hides(self, end_id: int) -> bool:
        """An end token's text is shown with the special tokens, a stop id's where stops are included."""
        return not (self._include_stop if end_id in self._request_stop_ids else self._shows_end)

    def _flush(self) -> str:
        if self._text is None:
            return ""
        text = self._text.flush()
        return self._stops.push(text) + self._stops.flush() if self._stops else text


def token_logprob(choice: TokenChoice, tokenizer: TextTokenizer | None) -> TokenLogprob:
    """A choice with the texts of its tokens."""
    raw = tokenizer.bytes_of(choice.token_id) if tokenizer else b""
    return TokenLogprob(
        token_id=choice.token_id,
        token=raw.decode(errors="replace"),
        logprob=choice.logprob,
        top=tuple((one, _text(one, tokenizer), logprob) for one, logprob in choice.top),
        raw=raw,
    )


def prompt_logprobs(
    prompt_ids: list[int], choices: Iterable[TokenChoice], tokenizer: TextTokenizer | None
) -> list[TokenLogprob]:
    """Those of the whole prompt; its first token has none."""
    first = prompt_ids[0]
    raw = tokenizer.bytes_of(first) if tokenizer else b""
    head = TokenLogprob(token_id=first, token=raw.decode(errors="replace"), logprob=None, raw=raw)
    return [head, *(token_logprob(choice, tokenizer) for choice in choices)]


def _text(token_id: int, tokenizer: TextTokenizer | None) -> str:
    return tokenizer.bytes_of(token_id).decode(errors="replace") if tokenizer else ""
