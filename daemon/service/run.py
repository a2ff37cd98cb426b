"""One accepted request in flight: a task that asks the engine, and the events for whoever reads them.

Whatever happens, the events end with exactly one of ``Finished``, ``Failed`` and ``Cancelled``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import msgspec

from contract.faults import Fault, FaultKind
from contract.generation import Cancelled, Delta, Event, Failed, Finished, Started, TokenLogprob, Usage
from daemon.backends.base import TokenEvent
from daemon.observe.requests import RequestRecord
from daemon.service.admission import Ticket
from daemon.service.answer import Answer, prompt_logprobs
from daemon.service.job import Job

TERMINAL = (Finished, Failed, Cancelled)
"""The events that end a request."""


class Run:
    """Starts when created; ``close`` it."""

    def __init__(self, job: Job, ticket: Ticket, record: RequestRecord) -> None:
        self.job = job
        self._ticket = ticket
        self._record = record
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._started, self._ended = asyncio.Event(), False
        self._reason: Fault | None = None
        self._completion_tokens = 0
        self._cached_tokens = 0
        if job.sampling.prompt_logprobs is None:
            self._start(None)
        self._driver = asyncio.create_task(self._drive(), name=f"request {job.run_id}")
        # A task cancelled before its first step runs nothing of its body.
        self._driver.add_done_callback(lambda _: self._end_cancelled())

    async def next_event(self) -> Event:
        """In order; not to be called again after a terminal event."""
        return await self._events.get()

    def cancel(self, reason: Fault | None = None) -> None:
        """Stop in the engine; events that go on end with ``Cancelled``, or fail with ``reason``."""
        self._reason = reason
        self._driver.cancel()

    async def close(self) -> None:
        """Nobody reads any more: stop, and return when the engine has been told."""
        if not self._driver.done():
            self._driver.cancel()
            await asyncio.wait([self._driver])

    async def _drive(self) -> None:
        try:
            async with asyncio.timeout(self.job.timeout_s):
                await self._ticket.wait()
                self._record.left_queue()
                await self._answer_all()
        except asyncio.CancelledError:
            self._end_cancelled()
        except TimeoutError:
            message = f"the request took longer than {self.job.timeout_s:g} s"
            self._fail(Fault(FaultKind.TIMEOUT, message, "ask for fewer tokens, or allow more time"))
        except Fault as fault:
            self._fail(fault)
        except Exception as error:
            logging.getLogger(__name__).exception("request %s failed", self.job.run_id)
            self._fail(Fault(FaultKind.INTERNAL, f"the request failed: {error!r}", "see the daemon's log"))
        else:
            self._finish()
        finally:
            self._ticket.leave()

    async def _answer_all(self) -> None:
        if self.job.request.n == 1:
            await self._answer(0)
            return
        tasks = [asyncio.create_task(self._answer(index)) for index in range(self.job.request.n)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _answer(self, index: int) -> None:
        """One answer from the engine, which is told when we stop reading."""
        job = self.job
        answer = Answer(job.request, job.sampling, job.tokenizer, index)
        if index:
            # The first answer brings the prompt's log-probabilities, which precede everything.
            await self._started.wait()
        stream = job.loaded.backend.generate(job.token_request(index))
        try:
            async for event in stream:
                if index == 0 and not answer.tokens and event.token_ids:
                    self._note_first(event)
                delta = answer.add(_without_tokens(event) if job.no_answer else event)
                self._deliver(delta)
                if answer.finished:
                    return
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
        message = f"backend {job.loaded.spec.backend} ended an answer without saying why"
        raise Fault(FaultKind.INTERNAL, message, "try again; report it if it recurs")

    def _note_first(self, event: TokenEvent) -> None:
        self._cached_tokens = event.cached_tokens
        self._record.engine_queue(event.queue_s)
        if not self._started.is_set():
            choices = event.prompt_choices or []
            self._start(prompt_logprobs(self.job.prompt.token_ids, choices, self.job.tokenizer))

    def _start(self, logprobs: list[TokenLogprob] | None) -> None:
        self._started.set()
        prompt = self.job.prompt
        started = Started(
            model=self.job.served_name,
            version=self.job.loaded.spec.version,
            prompt_token_ids=prompt.token_ids,
            prompt_text=prompt.text,
            prompt_logprobs=logprobs,
        )
        self._events.put_nowait(started)

    def _deliver(self, delta: Delta) -> None:
        self._completion_tokens += len(delta.token_ids)
        self._record.tokens(len(delta.token_ids))
        self._events.put_nowait(delta)

    def _usage(self) -> Usage:
        return Usage(len(self.job.prompt.token_ids), self._completion_tokens, self._cached_tokens)

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

    def _fail(self, fault: Fault) -> None:
        self._record.fail(fault)
        self._end(Failed(fault.to_dict()))

    def _end_cancelled(self) -> None:
        self._ticket.leave()
        if self._ended:
            return
        if self._reason is not None:
            self._fail(self._reason)
        else:
            self._record.cancel()
            self._end(Cancelled(self._usage()))

    def _end(self, event: Event) -> None:
        if self._ended:
            return
        self._ended = True
        if not self._started.is_set():
            self._start(None)
        self._events.put_nowait(event)


def _without_tokens(event: TokenEvent) -> TokenEvent:
    return msgspec.structs.replace(event, token_ids=[], choices=None, finish="length")
