"""The daemon's side of worker processes: each loaded model version runs in a process of its own.

``WorkerBackend`` and ``WorkerTensorBackend`` have the methods of the two contracts; ``worker_main`` is the
other end. One object is one life of one process: to restart a model, make a new object.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from contract.faults import Fault, FaultKind
from daemon.backends.base import (
    AdapterInfo,
    BackendStats,
    InferRequest,
    ModelInfo,
    ModelSpec,
    Progress,
    Tensor,
    TokenEvent,
    TokenRequest,
    TokenSink,
)
from daemon.backends.base import Cancel as CancelCall
from daemon.backends.channel import (
    AdapterDone,
    AskStats,
    Cancel,
    Channel,
    ChannelError,
    Credit,
    Ended,
    Frame,
    FromWorker,
    Generate,
    Infer,
    Load,
    LoadAdapter,
    Loaded,
    LoadFailed,
    LoadProgress,
    Stats,
    TensorInbox,
    Tensors,
    Tokens,
    Unload,
    UnloadAdapter,
)
from daemon.backends.process import WorkerProcess
from daemon.backends.sinks import pull
from daemon.backends.watchdog import until_stuck

_STATS_TIMEOUT_S = 5.0


class _Worker:
    """What both contracts share: the process, its connection, its death."""

    def __init__(
        self, *, grace_s: float = 5.0, interpreter: str | None = None, patience_s: float = 300.0
    ) -> None:
        """``grace_s``: how long unloading may take before the process is killed; ``patience_s``: how long it
        may have work and make no progress."""
        self._grace_s = grace_s
        self._patience_s = patience_s
        self._complaint = ""
        self._watchdog: asyncio.Task[None] | None = None
        self._interpreter = interpreter
        self._calls = itertools.count(1)
        self._token_calls: dict[int, TokenSink] = {}
        self._tensor_calls: dict[int, TensorInbox] = {}
        self._stats_calls: dict[int, asyncio.Future[BackendStats]] = {}
        self._adapter_calls: dict[int, asyncio.Future[AdapterInfo | None]] = {}
        self._title = ""
        self._process: WorkerProcess | None = None
        self._channel: Channel[FromWorker] | None = None
        self._life: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[Loaded] | None = None
        self._ended: Fault | None = None
        self._death: asyncio.Future[Fault | None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the worker process, ``None`` before loading and after the end."""
        return self._process.pid if self._process is not None and self._ended is None else None

    @property
    def last_lines(self) -> list[str]:
        """The last lines the worker wrote to stderr and stdout."""
        return list(self._process.last_lines) if self._process is not None else []

    async def died(self) -> Fault | None:
        """Waits for the end of a loaded worker: the fault if it crashed, ``None`` if it was unloaded."""
        if self._death is None:
            raise Fault(FaultKind.NOT_READY, "the worker has not been started")
        return await asyncio.shield(self._death)

    async def stats(self) -> BackendStats:
        """Raises ``Fault``, also when a worker does not answer within seconds."""
        call = next(self._calls)
        answer: asyncio.Future[BackendStats] = asyncio.get_running_loop().create_future()
        self._stats_calls[call] = answer
        try:
            self._send(AskStats(call))
            return await asyncio.wait_for(answer, _STATS_TIMEOUT_S)
        except TimeoutError:
            message = f"the worker of {self._title} has not answered for {_STATS_TIMEOUT_S:g} s"
            raise Fault(FaultKind.TIMEOUT, message, "see its log; unload and load the model") from None
        finally:
            self._stats_calls.pop(call, None)

    async def unload(self) -> None:
        """End the process: asked first, killed after the grace period. Requests in flight fail."""
        if self._process is None:
            return
        if self._ended is None:
            hint = "load it again, then try again"
            self._end(Fault(FaultKind.NOT_READY, f"{self._title} has been unloaded", hint), crashed=False)
            if self._channel is not None:
                self._channel.send(Unload())
        await self._buried()

    async def _buried(self) -> None:
        """Wait for the end of the process and of everything that watches it."""
        if self._process is not None:
            await self._process.wait_or_kill(self._grace_s)
        if self._life is not None:
            await self._life

    async def _load(self, spec: ModelSpec, progress: Progress) -> Loaded:
        if self._process is not None:
            raise Fault(FaultKind.ALREADY_EXISTS, f"this worker already serves {self._title}")
        self._title = f"{spec.name}@{spec.version}"
        loop = asyncio.get_running_loop()
        self._loaded, self._death = loop.create_future(), loop.create_future()
        try:
            self._process, sock = await WorkerProcess.start(spec, self._interpreter)
            self._channel = await Channel.open(sock, FromWorker)
            self._life = loop.create_task(self._live(progress), name=f"worker {self._title}")
            self._channel.send(Load(spec))
            return await asyncio.shield(self._loaded)
        except BaseException:
            await self._abandon()
            raise

    async def _abandon(self) -> None:
        """A load that failed or was cancelled leaves no process."""
        if self._ended is None:
            self._end(Fault(FaultKind.CANCELLED, f"loading {self._title} was abandoned"), crashed=False)
        if self._process is not None:
            self._process.kill()
            await asyncio.shield(self._buried())

    async def _live(self, progress: Progress) -> None:
        """Relay frames until the worker is gone, then tell everyone who waits."""
        channel, process = self._channel, self._process
        if channel is None or process is None:
            return
        try:
            await channel.receive(lambda frame: self._dispatch(frame, progress))
        except ChannelError as error:
            self._complaint = f"{error}; "
            process.kill()
        except Exception:
            logging.getLogger(__name__).exception("%s: relaying failed", self._title)
            self._complaint = "the daemon could not relay an answer; "
            process.kill()
        ending = await process.ending()
        channel.close()
        if self._ended is None:
            self._end(self._crash_fault(self._complaint + ending), crashed=True)
        await channel.wait_closed()

    def _crash_fault(self, ending: str) -> Fault:
        details: dict[str, Any] = {"model": self._title, "ending": ending}
        if self._process is not None:
            details |= self._process.exit_details()
        if self._loaded is None or self._loaded.done():
            hint = "it is being restarted; try again"
            return Fault(
                FaultKind.MODEL_CRASHED, f"the worker of {self._title} died: {ending}", hint, details
            )
        details["output"] = self.last_lines
        message = f"the worker of {self._title} died while loading: {ending}"
        if self.last_lines:
            message += ". Its last words:\n" + "\n".join(f"  {line}" for line in self.last_lines[-10:])
        return Fault(FaultKind.MODEL_CRASHED, message, "the daemon's log has all of its output", details)

    def _end(self, fault: Fault, *, crashed: bool) -> None:
        """Every caller that waits gets ``fault``, once."""
        self._ended = fault
        if self._watchdog is not None:
            self._watchdog.cancel()
        while self._token_calls:
            _, sink = self._token_calls.popitem()
            sink.fail(copy.copy(fault))
        for tensor_inbox in self._tensor_calls.values():
            tensor_inbox.fail(copy.copy(fault))
        answers: list[asyncio.Future[Any]] = [*self._stats_calls.values(), *self._adapter_calls.values()]
        for answer in answers:
            if not answer.done():
                answer.set_exception(copy.copy(fault))
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(copy.copy(fault))
            self._loaded.exception()
        if self._death is not None and not self._death.done():
            self._death.set_result(fault if crashed else None)

    def _dispatch(self, frame: FromWorker, progress: Progress) -> None:
        match frame:
            case Tokens(items):
                self._hand_out(items)
            case Ended(call, fault):
                self._finish_call(call, Fault.from_dict(fault) if fault is not None else None)
            case Tensors(call, outputs):
                if (inbox := self._tensor_calls.get(call)) is not None:
                    inbox.put(outputs)
            case LoadProgress(fraction, text):
                progress(fraction, text)
            case Stats(call, stats):
                if (answer := self._stats_calls.get(call)) is not None and not answer.done():
                    answer.set_result(stats)
            case AdapterDone(call, info, fault):
                self._finish_adapter(call, info, fault)
            case Loaded() | LoadFailed():
                self._finish_load(frame)

    def _hand_out(self, items: list[tuple[int, TokenEvent]]) -> None:
        """A call no longer known has been cancelled."""
        for call, event in items:
            if (sink := self._token_calls.get(call)) is not None:
                if event.finish is not None:
                    del self._token_calls[call]
                sink.put(event)

    def _finish_call(self, call: int, fault: Fault | None) -> None:
        if (sink := self._token_calls.pop(call, None)) is not None:
            sink.fail(fault or Fault(FaultKind.INTERNAL, f"{self._title} ended an answer unfinished"))
        if (tensor_inbox := self._tensor_calls.get(call)) is not None:
            tensor_inbox.fail(fault)

    def _finish_adapter(self, call: int, info: AdapterInfo | None, fault: dict[str, Any] | None) -> None:
        answer = self._adapter_calls.get(call)
        if answer is None or answer.done():
            return
        if fault is None:
            answer.set_result(info)
        else:
            answer.set_exception(Fault.from_dict(fault))

    def _finish_load(self, frame: Loaded | LoadFailed) -> None:
        if self._loaded is None or self._loaded.done():
            return
        if isinstance(frame, Loaded):
            self._loaded.set_result(frame)
        else:
            self._end(Fault.from_dict(frame.fault), crashed=False)

    def _send(self, frame: Frame) -> None:
        if self._ended is not None:
            raise copy.copy(self._ended)
        if self._channel is None or self._loaded is None or not self._loaded.done():
            raise Fault(FaultKind.NOT_READY, f"{self._title or 'the model'} is not loaded yet", "try again")
        try:
            self._channel.send(frame)
        except ChannelError as error:
            message = f"the request cannot be passed to {self._title}: {error}"
            raise Fault(FaultKind.TOO_LARGE, message, "send less in one request") from None

    def _cancel(self, call: int) -> None:
        """The reader left before the end. The worker may be gone too, which is as good."""
        with contextlib.suppress(Fault):
            self._send(Cancel(call))


class WorkerBackend(_Worker):
    """A ``TokenBackend`` whose work is done by another process."""

    async def load(self, spec: ModelSpec, progress: Progress) -> ModelInfo:
        """Start the process and wait until the model is ready there. Raises ``Fault``."""
        loaded = await self._load(spec, progress)
        if loaded.info is None:
            await self._abandon()
            raise Fault(FaultKind.INVALID_MODEL, f"backend {spec.backend} is not a token backend")
        self._watchdog = asyncio.create_task(self._kill_when_stuck(), name=f"watchdog {self._title}")
        return loaded.info

    def generate(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        """Relay one request. Close the iterator to cancel it. Raises ``Fault``."""
        return pull(self.start, request)

    def start(self, request: TokenRequest, sink: TokenSink) -> CancelCall:
        """See ``TokenPusher``."""
        call = next(self._calls)
        self._send(Generate(call, request))
        self._token_calls[call] = sink
        return functools.partial(self._cancel_tokens, call)

    def _cancel_tokens(self, call: int) -> None:
        if self._token_calls.pop(call, None) is not None:
            self._cancel(call)

    async def _kill_when_stuck(self) -> None:
        await until_stuck(lambda: bool(self._token_calls), self.stats, self._patience_s)
        self._complaint = f"it had requests and made no progress for {self._patience_s:g} s; "
        if self._process is not None:
            self._process.kill()

    async def load_adapter(self, name: str, directory: str) -> AdapterInfo:
        """Raises ``Fault``."""
        info = await self._ask(lambda call: LoadAdapter(call, name, directory))
        if info is None:
            raise Fault(FaultKind.INTERNAL, f"{self._title} did not say what it loaded")
        return info

    async def unload_adapter(self, name: str) -> None:
        """Raises ``Fault`` when there is none of this name."""
        await self._ask(lambda call: UnloadAdapter(call, name))

    async def _ask(self, frame_of: Callable[[int], Frame]) -> AdapterInfo | None:
        call = next(self._calls)
        answer: asyncio.Future[AdapterInfo | None] = asyncio.get_running_loop().create_future()
        self._adapter_calls[call] = answer
        try:
            self._send(frame_of(call))
            return await answer
        finally:
            del self._adapter_calls[call]


class WorkerTensorBackend(_Worker):
    """A ``TensorBackend`` whose work is done by another process."""

    async def load(self, spec: ModelSpec, progress: Progress) -> dict[str, Any]:
        """Start the process and wait until the model is ready there. Raises ``Fault``."""
        loaded = await self._load(spec, progress)
        if loaded.config is None:
            await self._abandon()
            raise Fault(FaultKind.INVALID_MODEL, f"backend {spec.backend} is not a tensor backend")
        return loaded.config

    async def infer(self, request: InferRequest) -> AsyncIterator[list[Tensor]]:
        """Relay one call. Close the iterator to cancel it. Raises ``Fault``."""
        call, inbox, finished = next(self._calls), TensorInbox(), False
        self._tensor_calls[call] = inbox
        try:
            self._send(Infer(call, request))
            while True:
                try:
                    outputs = await inbox.get()
                except Fault:
                    finished = True
                    raise
                if outputs is None:
                    finished = True
                    return
                self._send(Credit(call))
                yield outputs
        finally:
            del self._tensor_calls[call]
            if not finished:
                self._cancel(call)
