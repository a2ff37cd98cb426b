"""The path of a generate request: find the model, build the prompt, check limits, queue, run.

Every dialect and transport comes through here, and only here are metrics and the log line written.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import msgspec

from contract.faults import Fault, FaultKind
from contract.generation import Event, GenerateRequest
from daemon.observe.requests import RequestObserver, RequestRecord
from daemon.repository.loaded import Loaded
from daemon.repository.registry import Registry
from daemon.service import defaults
from daemon.service.admission import Admission, QueueLimits
from daemon.service.job import Job
from daemon.service.prompt import answer_length, build_prompt
from daemon.service.run import TERMINAL, Run
from daemon.service.text_model import TextModel

_LOOKAHEAD = 2
"""An engine gets this many times the sequences of one step, so that it never waits for us."""


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """The settings that concern requests."""

    max_running: int | None = None
    """Requests in one model's engine; ``None`` follows from what the engine can batch."""
    max_waiting: int = 1024
    """Further requests that wait for each model; more are refused."""
    max_answers: int = 64
    """The largest ``n``."""
    timeout_s: float = 600.0
    """Of a request, waiting included. A request can ask for less."""


class GenerateService:
    """Answers generate requests."""

    def __init__(
        self, registry: Registry[TextModel], observer: RequestObserver, limits: ServiceLimits
    ) -> None:
        self._registry = registry
        self._observer = observer
        self._limits = limits
        self._admissions: WeakKeyDictionary[Loaded[TextModel], Admission] = WeakKeyDictionary()
        self._runs: dict[str, Run] = {}
        self._numbers = itertools.count(2)
        self._stopping = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See ``facade.Service.generate``."""
        with self._observer.observe(request) as record:
            loaded, adapter = self._find(request)
            record.found(loaded.spec.name, loaded.spec.version)
            with loaded.lease():
                job = await self._plan(request, loaded, adapter)
                record.accepted(job.prompt.text, len(job.prompt.token_ids))
                run = self._begin(job, record)
                try:
                    while True:
                        if not run.events:
                            await run.arrival()
                        event = run.events.popleft()
                        yield event
                        if isinstance(event, TERMINAL):
                            return
                finally:
                    del self._runs[job.run_id]
                    run.cancel()

    def cancel(self, request_id: str) -> bool:
        """Cancel every running request of this id."""
        found = [run for run in self._runs.values() if run.job.request.request_id == request_id]
        for run in found:
            run.cancel()
        return bool(found)

    def load_of(self, loaded: Loaded[TextModel]) -> tuple[int, int]:
        """Requests of one version that run and that wait."""
        admission = self._admissions.get(loaded)
        return (admission.running, admission.waiting) if admission else (0, 0)

    def refuse_new(self) -> None:
        """From now on every new request is NOT_READY."""
        self._stopping = True

    def cut_off(self) -> None:
        """End every running request because the daemon stops."""
        message = "the daemon stopped before the answer was complete"
        for run in self._runs.values():
            run.cancel(Fault(FaultKind.NOT_READY, message, "ask again", {"state": "draining"}))

    async def finished(self, timeout_s: float) -> bool:
        """Wait for the running requests; ``False`` if some still run when the time is up."""
        waits = [loaded.drained(timeout_s) for loaded in self._registry.loaded()]
        return all(await asyncio.gather(*waits))

    def _find(self, request: GenerateRequest) -> tuple[Loaded[TextModel], str | None]:
        """The version that answers, and which of its adapters."""
        if self._stopping:
            message = "the daemon is stopping"
            raise Fault(FaultKind.NOT_READY, message, "send the request to another", {"state": "draining"})
        return self._registry.locate(request.model)

    async def _plan(self, request: GenerateRequest, loaded: Loaded[TextModel], adapter: str | None) -> Job:
        if not 1 <= request.n <= self._limits.max_answers:
            message = f"n must be from 1 to {self._limits.max_answers}; got {request.n}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "", {"field": "n"})
        defaults.check(request.sampling)
        model, spec = loaded.attachment, loaded.spec
        if request.sampling.stop:
            model.need_tokenizer(spec.name)
        prompt = await build_prompt(request, model, loaded.info, spec.name)
        length = answer_length(request, len(prompt.token_ids), model, loaded.info)
        sampling = defaults.resolve(request, model.defaults, max(1, length))
        return Job(
            request=request,
            run_id=self._unique(request.request_id),
            loaded=loaded,
            prompt=prompt,
            sampling=sampling if length else msgspec.structs.replace(sampling, min_tokens=0),
            no_answer=length == 0,
            timeout_s=min(request.timeout_s or self._limits.timeout_s, self._limits.timeout_s),
            adapter=adapter,
        )

    def _begin(self, job: Job, record: RequestRecord) -> Run:
        ticket = self._admission(job.loaded).enter(job.request.priority, job.request.caller)
        run = self._runs[job.run_id] = Run(job, ticket, record)
        return run

    def _admission(self, loaded: Loaded[TextModel]) -> Admission:
        admission = self._admissions.get(loaded)
        if admission is None:
            running = self._limits.max_running or _LOOKAHEAD * loaded.info.max_sequences
            limits = QueueLimits(max_running=running, max_waiting=self._limits.max_waiting)
            admission = self._admissions[loaded] = Admission(limits, loaded.spec.name)
        return admission

    def _unique(self, request_id: str) -> str:
        return request_id if request_id not in self._runs else f"{request_id}#{next(self._numbers)}"
