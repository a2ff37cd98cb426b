"""One accepted request in flight: takes what the engine pushes, and keeps the events for whoever reads them.

Whatever happens, the events end with exactly one of ``Finished``, ``Failed`` and ``Cancelled``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

import msgspec

from contract.faults import Fault, FaultKind
from contract.generation import Cancelled, Event, Failed, Finished, Started, TokenLogprob, Usage
from daemon.backends.base import Cancel, TokenEvent
from daemon.observe.requests import RequestRecord
from daemon.service.admission import Ticket
from daemon.service.answer import Answer, prompt_logprobs
from daemon.service.job import Job

TERMINAL = (Finished, Failed, Cancelled)
"""The events that end a request."""

_log = logging.getLogger(__name__)


class Run:
    """Starts when created; ``cancel`` it when nobody reads any more."""

    def __init__(self, job: Job, ticket: Ticket, record: RequestRecord) -> None:
        self.job = job
        self._ticket = ticket
        self._record = record
        self.events: deque[Event] = deque()
        """What the reader has not taken yet."""
        self._arrival: asyncio.Future[None] | None = None
        self._started = self._ended = False
        self._asked: dict[int, Cancel] = {}
        """The answers that the engine works on, by index, and how to cancel each."""
        self._unfinished = job.request.n
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._timer = asyncio.get_running_loop().call_later(job.timeout_s, self._time_out)
        if job.sampling.prompt_logprobs is None:
            self._start(None)
        if ticket.turn.done():
            self._enter(ticket.turn)
        else:
            ticket.turn.add_done_callback(self._enter)

    def arrival(self) -> asyncio.Future[None]:
        """Done when there are ``events`` again. For one reader."""
        self._arrival = asyncio.get_running_loop().create_future()
        return self._arrival

    def cancel(self, reason: Fault | None = None) -> None:
        """Stop in the engine; the events end with ``Cancelled``, or fail with ``reason``."""
        if reason is not None:
            self._fail(reason)
        elif not self._ended:
            self._record.cancel()
            self._end(Cancelled(self._usage()))

    def take(self, answer: Answer, event: TokenEvent) -> None:
        """The engine has more of one answer."""
        if self._ended or answer.finished:
            return
        try:
            if answer.index == 0 and not answer.tokens and event.token_ids:
                self._note_first(event)
            delta = answer.add(_without_tokens(event) if self.job.no_answer else event)
            self._completion_tokens += len(delta.token_ids)
            self._record.tokens(len(delta.token_ids))
            self._put(delta)
            if delta.finish_reason is not None and not self._ended:
                self._finish_answer(answer, engine_knows=event.finish is not None)
        except Exception as error:
            self._break(error)

    def lose(self, answer: Answer, fault: Fault) -> None:
        """The engine cannot go on with one answer, and so neither can the others."""
        if not answer.finished:
            self._fail(fault)

    def _enter(self, turn: asyncio.Future[None]) -> None:
        """It is our turn, or we have to give way."""
        if self._ended:
            return
        if (refusal := turn.exception()) is not None:
            self._break(refusal)
            return
        self._record.left_queue()
        # The first answer brings the prompt's log-probabilities, which precede everything.
        self._ask(range(self.job.request.n if self._started else 1))

    def _ask(self, indices: Iterable[int]) -> None:
        job = self.job
        try:
            for index in indices:
                answer = Answer(job.request, job.sampling, job.tokenizer, index)
                sink = _AnswerSink(self, answer)
                self._asked[index] = job.loaded.backend.start(job.token_request(index), sink)
        except Exception as error:
            self._break(error)

    def _note_first(self, event: TokenEvent) -> None:
        self._cached_tokens = event.cached_tokens
        self._record.engine_queue(event.queue_s)
        if not self._started:
            choices = event.prompt_choices or []
            self._start(prompt_logprobs(self.job.prompt.token_ids, choices, self.job.tokenizer))
            self._ask(range(1, self.job.request.n))

    def _start(self, logprobs: list[TokenLogprob] | None) -> None:
        self._started = True
        prompt = self.job.prompt
        started = Started(
            model=self.job.served_name,
            version=self.job.loaded.spec.version,
            prompt_token_ids=prompt.token_ids,
            prompt_text=prompt.text,
            prompt_logprobs=logprobs,
        )
        self._put(started)

    def _put(self, event: Event) -> None:
        if self._ended:
            return
        self.events.append(event)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _usage(self) -> Usage:
        return Usage(len(self.job.prompt.token_ids), self._completion_tokens, self._cached_tokens)

    def _finish_answer(self, answer: Answer, *, engine_knows: bool) -> None:
        cancel = self._asked.pop(answer.index)
        if not engine_knows:
            cancel()
        self._unfinished -= 1
        if not self._unfinished:
            self._finish()

    def _finish(self) -> None:
        self._record.finish()
        times = self._record.times()
        self._end(
            Finished(
                usage=self._usage(),
                queue_s=times.queue_s,
                first_token_s=times.first_token_s,
                total_s=times.total_s,
            )
        )

    def _time_out(self) -> None:
        message = f"the request took longer than {self.job.timeout_s:g} s"
        self._fail(Fault(FaultKind.TIMEOUT, message, "ask for fewer tokens, or allow more time"))

    def _break(self, error: BaseException) -> None:
        if isinstance(error, Fault):
            self._fail(error)
            return
        _log.error("request %s failed", self.job.run_id, exc_info=error)
        self._fail(Fault(FaultKind.INTERNAL, f"the request failed: {error!r}", "see the daemon's log"))

    def _fail(self, fault: Fault) -> None:
        if not self._ended:
            self._record.fail(fault)
            self._end(Failed(fault.to_dict()))

    def _end(self, event: Event) -> None:
        if not self._started:
            self._start(None)
        self._put(event)
        self._ended = True
        self._timer.cancel()
        for cancel in self._asked.values():
            cancel()
        self._asked.clear()
        self._ticket.leave()


class _AnswerSink:
    """Where the engine pushes one answer."""

    def __init__(self, run: Run, answer: Answer) -> None:
        self._run = run
        self._answer = answer

    def put(self, event: TokenEvent) -> None:
        self._run.take(self._answer, event)

    def fail(self, fault: Fault) -> None:
        self._run.lose(self._answer, fault)


def _without_tokens(event: TokenEvent) -> TokenEvent:
    return msgspec.structs.replace(event, token_ids=[], choices=None, finish="length")
