"""The worker process: one backend, one model version. Started by ``process``, never by hand.

``python -m daemon.backends.worker_main MODEL@VERSION FD PARENT``
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from typing import Any, cast

import msgspec

from contract.faults import Fault, FaultKind
from contract.memory import resident_bytes
from daemon.backends.base import (
    AdapterHost,
    AdapterInfo,
    BackendStats,
    ModelInfo,
    ModelSpec,
    Tensor,
    TensorBackend,
    TokenBackend,
    TokenEvent,
    TokenPusher,
    TokenRequest,
    TokenSink,
)
from daemon.backends.channel import (
    AdapterDone,
    AskStats,
    Cancel,
    Channel,
    ChannelError,
    Credit,
    Ended,
    Frame,
    Generate,
    Infer,
    Load,
    LoadAdapter,
    Loaded,
    LoadFailed,
    LoadProgress,
    Stats,
    Tensors,
    Tokens,
    ToWorker,
    Unload,
    UnloadAdapter,
)
from daemon.backends.registry import create
from daemon.backends.sinks import fault_of, merge, pump

_TENSORS = "ask for tensors: POST /v2/models/NAME/infer"
_TEXT = "ask for text: POST /v1/completions or /generate"
_PR_SET_PDEATHSIG = 1
_TENSOR_CREDIT = 4
"""Responses of one tensor call that may be on their way unread."""
_LINGER_S = 2.0
"""Time for the backend to stop, and for the last frames to leave, when the daemon is gone or unloads."""

_log = logging.getLogger("worker")


class Outbox:
    """Frames on their way to the daemon. What many requests get in one engine step leaves in one write."""

    def __init__(self, channel: Channel[ToWorker], calls: Collection[int]) -> None:
        """``calls``: those in flight, of which each may get tokens."""
        self._channel = channel
        self._calls = calls
        self._tokens: dict[int, list[TokenEvent]] = {}
        self._progress: LoadProgress | None = None
        self._frames: list[Frame] = []
        self._filled = asyncio.Event()

    def put(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._filled.set()

    def put_tokens(self, call: int, event: TokenEvent) -> None:
        self._tokens.setdefault(call, []).append(event)
        if len(self._tokens) >= len(self._calls) and self._channel.is_writable:
            self.flush()  # there is nobody to wait for
        else:
            self._filled.set()

    def put_progress(self, fraction: float, text: str) -> None:
        """Only the latest matters."""
        self._progress = LoadProgress(fraction, text)
        self._filled.set()

    async def run(self) -> None:
        """Send for ever. While the daemon reads slowly, events of one request merge here."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self._filled.wait()
                await self._channel.drain()
                self.flush()

    def flush(self) -> None:
        self._filled.clear()
        if self._progress is not None:
            self._send(self._progress)
            self._progress = None
        if self._tokens:
            self._send(Tokens([(call, merge(events)) for call, events in self._tokens.items()]))
            self._tokens.clear()
        for frame in self._frames:
            self._send(frame)
        self._frames.clear()

    def _send(self, frame: Frame) -> None:
        try:
            self._channel.send(frame)
        except ChannelError as error:
            if not isinstance(frame, Tensors):
                raise
            fault = Fault(FaultKind.TOO_LARGE, f"a response cannot be sent: {error}", "ask for less")
            self._channel.send(Ended(frame.call, fault.to_dict()))


class _Relay:
    """Takes the tokens of one call to the outbox."""

    def __init__(self, call: int, outbox: Outbox, over: Callable[[int], None]) -> None:
        self._call = call
        self._outbox = outbox
        self._over = over

    def put(self, event: TokenEvent) -> None:
        self._outbox.put_tokens(self._call, event)
        if event.finish is not None:
            self._over(self._call)

    def fail(self, fault: Fault) -> None:
        self._outbox.put(Ended(self._call, fault.to_dict()))
        self._over(self._call)


class Worker:
    """Reads the daemon's frames and runs the backend for them."""

    def __init__(self, channel: Channel[ToWorker]) -> None:
        self._channel = channel
        self._backend: TokenBackend | TensorBackend | None = None
        self._pusher: TokenPusher | None = None
        """The backend, if it is one."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[int, Callable[[], object]] = {}
        """How to cancel each."""
        self._outbox = Outbox(channel, self._calls)
        self._credits: dict[int, asyncio.Semaphore] = {}

    async def run(self) -> None:
        """Until the daemon says so or is gone."""
        self._spawn(self._outbox.run())
        await self._channel.receive(self._handle)
        for cancel in list(self._calls.values()):
            cancel()
        if self._backend is not None:
            await asyncio.wait_for(self._backend.unload(), _LINGER_S)

    def _handle(self, frame: ToWorker) -> None:
        match frame:
            case Load(spec):
                self._spawn(self._load(spec))
            case Generate():
                self._generate(frame)
            case Infer(call):
                answering = self._spawn(self._answer(frame))
                self._calls[call] = answering.cancel
                answering.add_done_callback(lambda _: self._end(call))
            case Cancel(call):
                self._cancel(call)
            case Credit(call):
                if (credit := self._credits.get(call)) is not None:
                    credit.release()
            case AskStats(call):
                self._spawn(self._stats(call))
            case LoadAdapter() | UnloadAdapter():
                self._spawn(self._adapter(frame))
            case Unload():
                self._channel.stop_receiving()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Whoever waits for this would wait for ever; the daemon restarts us instead.
            _log.critical("the worker is broken", exc_info=error)
            os._exit(1)

    async def _load(self, spec: ModelSpec) -> None:
        loop = asyncio.get_running_loop()

        def progress(fraction: float, text: str) -> None:
            loop.call_soon_threadsafe(self._outbox.put_progress, fraction, text)

        try:
            backend = create(spec.backend)
            info = await backend.load(spec, progress)
        except Exception as error:
            self._outbox.put(LoadFailed(fault_of(error, "loading failed").to_dict()))
            return
        self._backend = backend
        self._pusher = backend if isinstance(backend, TokenPusher) else None
        self._outbox.put(Loaded(info=info) if isinstance(info, ModelInfo) else Loaded(config=info))

    def _cancel(self, call: int) -> None:
        if (cancel := self._calls.pop(call, None)) is not None:
            cancel()

    def _end(self, call: int) -> None:
        self._calls.pop(call, None)

    def _generate(self, frame: Generate) -> None:
        """One call, to exactly one finish or fault (unless it is cancelled: then nobody reads)."""
        relay = _Relay(frame.call, self._outbox, self._end)
        try:
            self._calls[frame.call] = self._begin(frame.request, relay)
        except Exception as error:
            relay.fail(fault_of(error, "answering failed"))

    def _begin(self, request: TokenRequest, sink: TokenSink) -> Callable[[], object]:
        if self._pusher is not None:
            return self._pusher.start(request, sink)
        backend: object = self._backend
        if (generate := getattr(backend, "generate", None)) is None:
            raise Fault(FaultKind.UNSUPPORTED, "this model does not generate tokens", _TENSORS)
        return self._spawn(pump(generate(request), sink)).cancel

    async def _answer(self, frame: Infer) -> None:
        """One call, to exactly one ``Ended`` (unless it is cancelled: then nobody reads)."""
        fault: Fault | None = None
        try:
            await self._infer(frame)
        except Exception as error:
            fault = fault_of(error, "answering failed")
        self._outbox.put(Ended(frame.call, fault.to_dict() if fault is not None else None))

    async def _infer(self, frame: Infer) -> None:
        backend = self._backend
        if backend is None or not hasattr(backend, "infer"):
            raise Fault(FaultKind.UNSUPPORTED, "this model does not take tensors", _TEXT)
        credit = self._credits[frame.call] = asyncio.Semaphore(_TENSOR_CREDIT)
        responses = cast("AsyncGenerator[list[Tensor], None]", backend.infer(frame.request))
        try:
            async with contextlib.aclosing(responses):
                async for outputs in responses:
                    await credit.acquire()
                    self._outbox.put(Tensors(frame.call, outputs))
        finally:
            del self._credits[frame.call]

    async def _stats(self, call: int) -> None:
        stats = BackendStats()
        if self._backend is not None:
            stats = await self._backend.stats()
        if not stats.memory_bytes:
            stats = msgspec.structs.replace(stats, memory_bytes=resident_bytes())
        self._outbox.put(Stats(call, stats))

    async def _adapter(self, frame: LoadAdapter | UnloadAdapter) -> None:
        info: AdapterInfo | None = None
        fault: Fault | None = None
        try:
            backend: object = self._backend
            if not isinstance(backend, AdapterHost):
                hint = "merge it when packaging: builder package --adapter"
                raise Fault(FaultKind.UNSUPPORTED, "this model's backend serves no adapters", hint)
            if isinstance(frame, LoadAdapter):
                info = await backend.load_adapter(frame.name, frame.directory)
            else:
                await backend.unload_adapter(frame.name)
        except Exception as error:
            fault = fault_of(error, "the adapter failed")
        self._outbox.put(AdapterDone(frame.call, info, fault.to_dict() if fault is not None else None))

    async def drain(self) -> None:
        """Let the last frames leave."""
        self._outbox.flush()
        self._channel.close()
        await asyncio.wait_for(self._channel.wait_closed(), _LINGER_S)


def _die_with(parent: int) -> None:
    """The kernel kills this process when the daemon dies, however it dies and whatever we are doing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


async def _serve(fd: int) -> None:
    os.set_inheritable(fd, False)
    channel: Channel[ToWorker] = await Channel.open(socket.socket(fileno=fd), ToWorker)
    worker = Worker(channel)
    serving = asyncio.create_task(worker.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await serving
    with contextlib.suppress(TimeoutError):
        await worker.drain()


def main() -> None:
    _title, fd, parent = sys.argv[1:4]
    _die_with(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    code = 0
    try:
        asyncio.run(_serve(int(fd)))
    except ChannelError as error:
        _log.error("%s", error)
        code = 1
    except BaseException:
        _log.exception("the worker failed")
        code = 1
    # Native threads of an engine may hang at interpreter shutdown; nothing here needs one.
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
