"""What happens to each request, noted as it happens: counts for the ledger and one log line at its end."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from contract.faults import Fault, FaultKind
from contract.generation import GenerateRequest
from daemon.observe.ledger import Ledger, Outcome, VersionCounts

LogLine = Callable[[dict[str, Any]], None]
"""Writes one finished request; see ``logs.RequestLog``."""


class Times(NamedTuple):
    """Of one request so far, in seconds."""

    queue_s: float
    first_token_s: float
    total_s: float


class RequestObserver:
    """Makes a record for each request."""

    def __init__(
        self, ledger: Ledger, log_line: LogLine | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._ledger = ledger
        self._log_line = log_line
        self._clock = clock

    @contextmanager
    def observe(self, request: GenerateRequest) -> Iterator[RequestRecord]:
        """Around the whole service call: whatever way it is left, the record ends with an outcome."""
        record = RequestRecord(request, self._ledger, self._log_line, self._clock)
        try:
            yield record
        except Fault as fault:
            record.refuse(fault)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            record.cancel()
            raise
        except BaseException as error:
            record.fail(Fault(FaultKind.INTERNAL, repr(error)))
            raise
        finally:
            record.cancel()


class RequestRecord:
    """One request. The first of ``finish``, ``fail``, ``cancel`` and ``refuse`` decides the outcome."""

    def __init__(
        self,
        request: GenerateRequest,
        ledger: Ledger,
        log_line: LogLine | None,
        clock: Callable[[], float],
    ) -> None:
        self._request = request
        self._ledger = ledger
        self._log_line = log_line
        self._clock = clock
        self._counts: VersionCounts | None = None
        self._name = ("", "")
        self._born = clock()
        self._left_queue: float | None = None
        self._engine_queue_s = 0.0
        self._first: float | None = None
        self._last = 0.0
        self._gaps = array("d")
        self._prompt = ""
        self._prompt_tokens = self._generation_tokens = 0
        self._ended = False

    def found(self, model: str, version: str) -> None:
        self._name = (model, version)
        self._counts = self._ledger.of(model, version)
        self._counts.received += 1

    def accepted(self, prompt: str, prompt_tokens: int) -> None:
        self._prompt, self._prompt_tokens = prompt, prompt_tokens
        if self._counts:
            self._counts.prompt_tokens += prompt_tokens
            self._counts.request_prompt_tokens.observe(prompt_tokens)

    def left_queue(self) -> None:
        self._left_queue = self._clock()

    def engine_queue(self, seconds: float) -> None:
        """The engine has a queue of its own."""
        self._engine_queue_s = max(self._engine_queue_s, seconds)

    def tokens(self, count: int) -> None:
        """Tokens arrived. Called for each step of each stream."""
        counts = self._counts
        if counts is None or not count:
            return
        now = self._clock()
        if self._first is None:
            self._first = now
            counts.first_token_s.observe(now - self._born)
        else:
            gap = (now - self._last) / count
            counts.per_token_s.observe(gap, count)
            self._gaps.append(gap)
        self._last = now
        counts.generation_tokens += count
        self._generation_tokens += count

    def times(self) -> Times:
        now = self._clock()
        queued_until = self._left_queue if self._left_queue is not None else now
        first = self._first if self._first is not None else now
        queue_s = queued_until - self._born + self._engine_queue_s
        return Times(queue_s, first - self._born, now - self._born)

    def finish(self) -> None:
        self._end("success", None)

    def fail(self, fault: Fault) -> None:
        self._end("failed", fault)

    def cancel(self) -> None:
        self._end("cancelled", None)

    def refuse(self, fault: Fault) -> None:
        self._end("refused", fault)

    def _end(self, outcome: str, fault: Fault | None) -> None:
        if self._ended:
            return
        self._ended = True
        times = self.times()
        key = Outcome(self._request.dialect, outcome, fault.kind.value if fault else "")
        if self._counts is None:
            self._ledger.unaddressed[key] += 1
        else:
            self._counts.outcomes[key] += 1
            self._count(self._counts, outcome, times)
        if (log_line := self._log_line) is not None:
            # Whoever waits for the end is told first: a line takes longer to write than a token to send.
            asyncio.get_running_loop().call_soon(lambda: log_line(self._line(outcome, fault, times)))

    def _count(self, counts: VersionCounts, outcome: str, times: Times) -> None:
        if outcome == "refused":
            return
        (counts.success if outcome == "success" else counts.fail).add(times.total_s)
        counts.queue_s.observe(times.queue_s)
        counts.latency_s.observe(times.total_s)
        counts.request_generation_tokens.observe(self._generation_tokens)
        counts.last_inference_ms = int(time.time() * 1000)
        if outcome == "success":
            counts.queue.add(times.queue_s)
            counts.prefill.add(max(0.0, times.first_token_s - times.queue_s))
            counts.decode.add(times.total_s - times.first_token_s)

    def _line(self, outcome: str, fault: Fault | None, times: Times) -> dict[str, Any]:
        gaps = sorted(self._gaps)
        line: dict[str, Any] = {
            "request_id": self._request.request_id,
            "model": self._name[0] or self._request.model or "",
            "version": self._name[1],
            "dialect": self._request.dialect,
            "outcome": outcome,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._generation_tokens,
            "queue_ms": _ms(times.queue_s),
            "ttft_ms": _ms(times.first_token_s) if self._first is not None else None,
            "itl_p50_ms": _ms(gaps[len(gaps) // 2]) if gaps else None,
            "itl_p99_ms": _ms(gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)]) if gaps else None,
            "total_ms": _ms(times.total_s),
        }
        if fault is not None:
            line["fault"] = fault.kind.value
            line["reason"] = fault.message
        line["prompt"] = self._prompt
        return line


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
