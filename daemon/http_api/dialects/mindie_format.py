"""Answers of MindIE's and TGI's generate endpoints.

MindIE writes null where it computes nothing (log-probabilities, special); TGI fills them in.
"""

from __future__ import annotations

from typing import Any

from contract.generation import Delta, FinishReason, Started, TokenLogprob
from daemon.http_api.dialects.mindie_body import Generate
from daemon.http_api.gathering import Answer, Gathered

_REASONS: dict[FinishReason, str] = {"stop": "eos_token", "length": "length", "stop_string": "stop_sequence"}


class MindieFormat:
    """One request's answer in MindIE's form, whole or token by token."""

    def __init__(self, asked: Generate) -> None:
        self.asked = asked
        self._answer = Answer()
        self._started: Started | None = None

    def whole(self, gathered: Gathered) -> dict[str, Any]:
        self._started, self._answer = gathered.started, gathered.answers[0]
        result: dict[str, Any] = {"generated_text": self._full_text()}
        if self.asked.details:
            result["details"] = self._whole_details()
        return result

    def start(self, started: Started) -> None:
        self._started = started

    def events(self, delta: Delta) -> list[dict[str, Any]]:
        """An event for each token; the text of a delta goes with its last token."""
        self._answer.add(delta)
        last = len(delta.token_ids) - 1
        # A held-back text may come after the last token: it must not be lost.
        count = max(len(delta.token_ids), 1 if delta.text or delta.finish_reason else 0)
        first_index = len(self._answer.token_ids) - len(delta.token_ids) + 1
        events = []
        for position in range(count):
            text = delta.text if position >= last else ""
            is_end = delta.finish_reason is not None and position >= last
            event = self._event(first_index + position)
            event["token"] = self._token(delta, position, text)
            event["generated_text"] = self._full_text() if is_end else None
            event["details"] = self._stream_details() if is_end and self.asked.details else None
            events.append(event)
        return events

    def _event(self, index: int) -> dict[str, Any]:
        return {"token": None}

    def _token(self, delta: Delta, position: int, text: str) -> dict[str, Any]:
        token_id = delta.token_ids[position] if delta.token_ids else self._last_id()
        return {"id": token_id, "text": text, "logprob": None, "special": None}

    def _last_id(self) -> int:
        return self._answer.token_ids[-1] if self._answer.token_ids else 0

    def _full_text(self) -> str:
        prompt = self._started.prompt_text if self._started and self.asked.full_text else ""
        return prompt + self._answer.text

    def _stream_details(self) -> dict[str, Any]:
        reason = self._answer.finish_reason
        return {
            "prompt_tokens": len(self._started.prompt_token_ids) if self._started else 0,
            "finish_reason": _REASONS[reason] if reason else None,
            "generated_tokens": len(self._answer.token_ids),
            "seed": self.asked.request.sampling.seed,
        }

    def _whole_details(self) -> dict[str, Any]:
        return {**self._stream_details(), "prefill": self._prefill(), "tokens": self._tokens()}

    def _prefill(self) -> list[dict[str, Any]]:
        ids = self._started.prompt_token_ids if self._started and self.asked.prefill else []
        return [{"id": token_id, "logprob": None, "special": None, "text": None} for token_id in ids]

    def _tokens(self) -> list[dict[str, Any]]:
        ids = self._answer.token_ids
        return [{"id": token_id, "logprob": None, "special": None, "text": None} for token_id in ids]


class TgiFormat(MindieFormat):
    """TGI's form: positions, log-probabilities and special tokens are told."""

    def _event(self, index: int) -> dict[str, Any]:
        return {"index": index, "token": None}

    def events(self, delta: Delta) -> list[dict[str, Any]]:
        events = super().events(delta)
        if self.asked.top_n:
            for event, entry in zip(events, delta.logprobs or (), strict=False):
                event["top_tokens"] = _top(entry)
        return events

    def _token(self, delta: Delta, position: int, text: str) -> dict[str, Any]:
        token = super()._token(delta, position, text)
        entries = delta.logprobs or []
        token["logprob"] = entries[position].logprob if position < len(entries) else 0.0
        # An end token shows no text; clients drop special tokens from what they print.
        token["special"] = delta.finish_reason == "stop" and not text
        return token

    def _prefill(self) -> list[dict[str, Any]]:
        entries = (self._started.prompt_logprobs if self._started and self.asked.prefill else None) or []
        return [{"id": entry.token_id, "text": entry.token, "logprob": entry.logprob} for entry in entries]

    def _tokens(self) -> list[dict[str, Any]]:
        entries = self._answer.logprobs
        last = len(entries) - 1
        return [
            {
                "id": entry.token_id,
                "text": entry.token,
                "logprob": entry.logprob,
                "special": position == last and self._answer.finish_reason == "stop",
            }
            for position, entry in enumerate(entries)
        ]

    def _whole_details(self) -> dict[str, Any]:
        details = super()._whole_details()
        if self.asked.top_n:
            details["top_tokens"] = [_top(entry) for entry in self._answer.logprobs]
        return details


def _top(entry: TokenLogprob) -> list[dict[str, Any]]:
    return [
        {"id": token_id, "text": token, "logprob": logprob, "special": False}
        for token_id, token, logprob in entry.top
    ]
