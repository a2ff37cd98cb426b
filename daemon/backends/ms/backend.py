"""Backend ``ms``: the engine behind the token contract. Only the runner imports MindSpore."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.networks import is_known
from contract.serving import read_serving
from daemon.backends.base import (
    AdapterInfo,
    BackendStats,
    Cancel,
    ModelInfo,
    ModelSpec,
    Progress,
    TokenEvent,
    TokenRequest,
    TokenSink,
)
from daemon.backends.ms.ascend import AscendRunner
from daemon.backends.ms.engine import Engine, EngineSettings, Outcome, Runner
from daemon.backends.ms.memory import check_fit, plan_blocks, room_for_model
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.weights import estimate
from daemon.backends.options import read_options
from daemon.backends.sinks import pull
from daemon.engine_options import EngineOptions

_JOIN_S = 5.0
_EXIT_BROKEN = 70

_log = logging.getLogger(__name__)


class LoadedRunner(Runner, Protocol):
    """What the backend needs of ``runner.ModelRunner`` beyond what the engine does."""

    context_len: int
    weight_bytes: int
    mapped_bytes: int
    kv_dtype: str
    activation_dtype: str
    kv_bytes_per_block: int

    def load_adapter(self, folder: Path) -> tuple[int, int]: ...

    def close(self) -> None: ...


class LoadRunner(Protocol):
    """``ModelRunner.load``."""

    def __call__(self, model_dir: Path, *, options: RunnerOptions, progress: Progress) -> LoadedRunner: ...


class MsBackend:
    """A ``TokenBackend`` on MindSpore."""

    def __init__(self, load_runner: LoadRunner = ModelRunner.load) -> None:
        self._load_runner = load_runner
        self._give_up: Callable[[str], None] = _exit_broken
        self._numbers = itertools.count(1)
        self._sinks: dict[int, TokenSink] = {}
        self._runner: LoadedRunner | None = None
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def load(self, spec: ModelSpec, progress: Progress) -> ModelInfo:
        """Raises ``Fault``: untrusted code, too little memory, a broken model."""
        options = read_options(EngineOptions, spec.options, "ms")
        self._loop = asyncio.get_running_loop()
        self._runner = runner = await asyncio.to_thread(self._start_runner, spec, options, progress)
        settings = EngineSettings(
            context_len=_context_len(spec.path, options),
            max_sequences=options.max_sequences,
            prefill_slowdown=options.prefill_slowdown,
            prompt_lookup=options.prompt_lookup,
            prefix_cache=options.prefix_cache,
        )
        self._engine = engine = Engine(runner, settings, self._emit, self._give_up)
        engine.start()
        adapters = [await self.load_adapter(*named) for named in spec.adapters.items()]
        dtype = options.dtype if options.dtype != "auto" else read_serving(spec.path).dtype
        return msgspec.structs.replace(_describe(runner, engine, settings, dtype), adapters=adapters)

    def generate(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        return pull(self.start, request)

    def start(self, request: TokenRequest, sink: TokenSink) -> Cancel:
        """See ``TokenPusher``."""
        engine = self._engine
        if engine is None:
            raise Fault(FaultKind.NOT_READY, "the model is not loaded", "load it, then try again")
        number = next(self._numbers)
        engine.submit(number, request)
        self._sinks[number] = sink
        return functools.partial(self._cancel, engine, number)

    async def load_adapter(self, name: str, directory: str) -> AdapterInfo:
        """See ``AdapterHost``."""
        engine, runner = self._engine, self._runner
        if engine is None or runner is None:
            raise Fault(FaultKind.NOT_READY, "the model is not loaded", "load it, then try again")
        number, taken = await asyncio.to_thread(runner.load_adapter, Path(directory))
        engine.adapters.put(name, number)
        return AdapterInfo(name=name, directory=directory, memory_bytes=taken)

    async def unload_adapter(self, name: str) -> None:
        """See ``AdapterHost``."""
        if self._engine is None:
            raise Fault(FaultKind.NOT_READY, "the model is not loaded", "load it, then try again")
        self._engine.adapters.remove(name)

    async def stats(self) -> BackendStats:
        return self._engine.stats if self._engine is not None else BackendStats()

    async def unload(self) -> None:
        engine, runner = self._engine, self._runner
        self._engine = self._runner = None
        if engine is not None:
            engine.stop()
            await asyncio.to_thread(engine.join, _JOIN_S)
        if runner is not None:
            runner.close()

    def _start_runner(self, spec: ModelSpec, options: EngineOptions, progress: Progress) -> LoadedRunner:
        if not options.trust_model_code:
            _check_network(spec.path)
        runner_options = RunnerOptions(
            num_blocks=_num_blocks(spec, options),
            max_rows=options.max_rows,
            max_logit_rows=options.max_logit_rows,
            threads=spec.threads,
            dtype=options.dtype,
            head_dtype=options.head_dtype,
            kv_dtype=options.kv_dtype,
            activation_dtype=options.activation_dtype,
            allow_nonfinite=options.allow_nonfinite,
            packed_cache=Path(options.packed_cache) if options.packed_cache else None,
        )
        load = AscendRunner.load if options.device == "ascend" else self._load_runner
        return load(spec.path, options=runner_options, progress=progress)

    def _emit(self, outcomes: list[tuple[int, Outcome]]) -> None:
        """From the engine's thread."""
        if self._loop is not None:
            # A loop already closed has no readers left.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver, outcomes)

    def _deliver(self, outcomes: list[tuple[int, Outcome]]) -> None:
        for number, outcome in outcomes:
            sink = self._sinks.get(number)
            if sink is None:
                continue
            if isinstance(outcome, Fault):
                del self._sinks[number]
                sink.fail(outcome)
            else:
                if outcome.finish is not None:
                    del self._sinks[number]
                sink.put(outcome)

    def _cancel(self, engine: Engine, number: int) -> None:
        if self._sinks.pop(number, None) is not None:
            engine.cancel(number)


def _exit_broken(reason: str) -> None:
    """The daemon starts a new worker."""
    _log.critical("the engine is broken: %s", reason)
    logging.shutdown()
    os._exit(_EXIT_BROKEN)


def _check_network(directory: Path) -> None:
    name = read_serving(directory).network
    if name is None or Path(name).name != name:
        message = f'{directory}/config.json, block "serving", names no network file for the ms backend'
        raise Fault(FaultKind.INVALID_MODEL, message, "package the model again")
    path = directory / name
    if not path.is_file():
        raise Fault(FaultKind.INVALID_MODEL, f"the network file {path} does not exist")
    if not is_known(sha256_of_file(path)):
        message = f"{path} is not one of the network files that MindPort ships"
        hint = "package the model again; if you trust the file, start the daemon with --trust-model-code"
        raise Fault(FaultKind.UNTRUSTED_CODE, message, hint)


def _context_len(directory: Path, options: EngineOptions) -> int:
    limit = read_serving(directory).limits.max_seq_len
    return min(limit, options.context_len or limit)


def _num_blocks(spec: ModelSpec, options: EngineOptions) -> int:
    """From the options, else from the memory there is. At least one sequence of full length fits."""
    need = estimate(spec.path, options.dtype, options.kv_dtype, options.head_dtype)
    room = room_for_model(spec.promised_bytes)
    size = RunnerOptions(num_blocks=1).block_size
    least = -(-_context_len(spec.path, options) // size)
    if options.num_blocks is None and options.kv_cache_bytes is None:
        return plan_blocks(
            room=room,
            weight_bytes=need.weight_bytes,
            block_bytes=need.kv_bytes_per_block,
            wanted_blocks=least * options.max_sequences,
            least_blocks=least,
        )
    blocks = options.num_blocks or (options.kv_cache_bytes or 0) // need.kv_bytes_per_block
    if blocks < least:
        message = (
            f"a KV cache of {blocks} blocks holds {blocks * size} tokens; "
            f"one sequence of full length has {least * size}"
        )
        least_mb = -(-least * need.kv_bytes_per_block // 2**20)
        name, enough = ("num_blocks", least) if options.num_blocks else ("ms.kv_cache_mb", least_mb)
        hint = f"set {name} to at least {enough}, or leave it out"
        raise Fault(FaultKind.OUT_OF_MEMORY, message, hint)
    check_fit(room, need.weight_bytes, blocks * need.kv_bytes_per_block)
    return blocks


def _describe(runner: LoadedRunner, engine: Engine, settings: EngineSettings, dtype: str) -> ModelInfo:
    kv_bytes = runner.num_blocks * runner.kv_bytes_per_block
    kv_tokens = runner.num_blocks * runner.block_size
    return ModelInfo(
        vocab_size=runner.vocab_size,
        context_len=settings.context_len,
        max_sequences=engine.max_sequences,
        kv_tokens=kv_tokens,
        memory_bytes=runner.weight_bytes + kv_bytes,
        unclaimed_bytes=kv_bytes + runner.mapped_bytes,  # whose pages count as available
        dtype=dtype,
        details={
            "num_blocks": runner.num_blocks,
            "block_size": runner.block_size,
            "full_length_sequences": kv_tokens // settings.context_len,
            "weight_bytes": runner.weight_bytes,
            "kv_bytes": kv_bytes,
            "kv_dtype": runner.kv_dtype,
            "activation_dtype": runner.activation_dtype,
            "max_rows": runner.max_rows,
            "prefill_slowdown": settings.prefill_slowdown,
            "prompt_lookup": settings.prompt_lookup,
            "prefix_cache": settings.prefix_cache,
        },
    )
