"""Fake models and engines for the daemon's tests: a real service over backends in process.

``fake_service`` writes a repository with tokenizers trained on the spot and starts a ``DaemonService``.
The fake engines do what their names say; which one serves a model is the model's ``backend``.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from contract.faults import Fault, FaultKind
from contract.generation import GenerateRequest, Message, Sampling
from daemon.backends.base import (
    BackendStats,
    Cancel,
    ModelInfo,
    ModelSpec,
    Progress,
    TokenChoice,
    TokenEvent,
    TokenRequest,
    TokenSink,
)
from daemon.backends.sinks import pump
from daemon.observe.requests import LogLine
from daemon.repository.managed import ManagedBackend
from daemon.repository.registry import Registry, RegistryConfig
from daemon.service.daemon_service import DaemonService
from daemon.service.generate import ServiceLimits
from daemon.service.text_model import prepare_text_model

CONTROL_TOKENS = ("<_unk>", "<_start>", "<_end>", "<_pad>", "<_user>", "<_bot>", "<_system>")
END_ID = CONTROL_TOKENS.index("<_end>")
BOS_ID = CONTROL_TOKENS.index("<_start>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}<_system>{{ message.content }}\n"
    "{%- elif message.role == 'user' -%}<_user>{{ message.content }}"
    "{%- elif message.role == 'assistant' -%}<_bot>{{ message.content }}<_end>\n"
    "{%- else -%}{{ raise_exception('unknown role ' + message.role) }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<_bot>{%- endif -%}"
)
_CORPUS = (
    "The quick brown fox jumps over the lazy dog. Hello world, hello again!",
    "生抽与老抽的区别？生抽颜色浅，老抽颜色深。你好，世界。",
    "Light soy sauce is thin and salty; dark soy sauce is thick. 1+1=2, 3*4=12.",
)


@functools.cache
def byte_level_tokenizer() -> str:
    """A tokenizer.json of the GPT-2 kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


@functools.cache
def sentencepiece_tokenizer() -> str:
    """A tokenizer.json of the kind that LLaMA's conversion makes: byte fallback and a dummy prefix."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(["▁" + line for line in _CORPUS], trainer)
    learned = json.loads(trained.to_str())["model"]
    pieces = [*CONTROL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocab = {piece: rank for rank, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<_unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL_TOKENS])
    return str(tokenizer.to_str())


def write_model(
    repository: Path,
    name: str,
    *,
    version: str = "1",
    backend: str = "echo",
    tokenizer: str | None = None,
    template: str | None = CHAT_TEMPLATE,
    serving: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """A version's folder. ``serving`` overrides keys of its serving block."""
    source = byte_level_tokenizer() if tokenizer is None else tokenizer
    folder = repository / name / version
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(source, encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    block = {
        "format_version": 1,
        "backend": backend,
        "limits": {"max_seq_len": 512, "max_input_tokens": 256},
        "prompt": {"chat_template": None if template is None else "chat_template.jinja"},
        "tokenizer": "tokenizer.json",
        "bos_token_id": BOS_ID,
        "eos_token_ids": [END_ID],
        **(serving or {}),
    }
    vocab_size = Tokenizer.from_str(source).get_vocab_size()
    config = {"model_type": "fake", "vocab_size": vocab_size, "serving": block}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


class EchoBackend:
    """Answers with the prompt's ids, one a step, then the end token."""

    def __init__(self) -> None:
        self.requests: list[TokenRequest] = []
        self.closed: list[str] = []
        """Ids of requests that were closed before their end."""
        self.running = 0
        self.unloaded = False
        self._pumps: set[asyncio.Task[None]] = set()
        self.death: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()
        self.pid: int | None = 4711

    async def load(self, spec: ModelSpec, progress: Progress) -> ModelInfo:
        progress(0.5, "reading weights")
        config = json.loads((spec.path / "config.json").read_text(encoding="utf-8"))
        return ModelInfo(
            vocab_size=config["vocab_size"],
            context_len=config["serving"]["limits"]["max_seq_len"],
            max_sequences=8,
            kv_tokens=4096,
            memory_bytes=1024,
            dtype="none",
        )

    async def died(self) -> Fault | None:
        return await asyncio.shield(self.death)

    def die(self) -> None:
        """As if the worker process had been killed."""
        if not self.death.done():
            self.death.set_result(Fault(FaultKind.MODEL_CRASHED, "the worker was killed", "try again"))

    async def generate(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        self.requests.append(request)
        self.running += 1
        finished = False
        try:
            async for event in self.answer(request):
                finished = event.finish is not None
                yield event
        finally:
            self.running -= 1
            if not finished:
                self.closed.append(request.request_id)

    def start(self, request: TokenRequest, sink: TokenSink) -> Cancel:
        pumping = asyncio.get_running_loop().create_task(pump(self.generate(request), sink))
        self._pumps.add(pumping)
        pumping.add_done_callback(self._pumps.discard)

        def cancel() -> None:
            pumping.cancel()

        return cancel

    async def idle(self) -> None:
        """What was cancelled has ended."""
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def answer(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        sampling = request.sampling
        ids = [*request.prompt_ids, *sampling.stop_token_ids[:1]]
        for position in range(max(len(ids), sampling.max_tokens)):
            token = ids[position % len(ids)]
            stopped = token in sampling.stop_token_ids and position >= sampling.min_tokens
            full = position + 1 >= sampling.max_tokens
            yield TokenEvent(
                token_ids=[token],
                choices=None if sampling.logprobs is None else [choice(token, sampling.logprobs)],
                prompt_choices=self._prompt_choices(request) if position == 0 else None,
                finish="stop" if stopped else "length" if full else None,
            )
            await self.step()
            if stopped or full:
                return

    async def step(self) -> None:
        await asyncio.sleep(0)

    async def stats(self) -> BackendStats:
        return BackendStats(running=self.running, kv_used_fraction=0.25, tokens_generated=len(self.requests))

    async def unload(self) -> None:
        self.unloaded = True
        if not self.death.done():
            self.death.set_result(None)

    def _prompt_choices(self, request: TokenRequest) -> list[TokenChoice] | None:
        top = request.sampling.prompt_logprobs
        return None if top is None else [choice(token, top) for token in request.prompt_ids[1:]]


class SlowBackend(EchoBackend):
    """Echoes a token only when ``allow`` is called, so that a test can look at a request in flight."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = asyncio.Semaphore(0)

    def allow(self, steps: int = 1) -> None:
        for _ in range(steps):
            self._steps.release()

    async def step(self) -> None:
        await self._steps.acquire()


class FailingBackend(EchoBackend):
    """Fails with a fault after its first token."""

    async def answer(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(token_ids=request.prompt_ids[:1])
        raise Fault(FaultKind.OUT_OF_MEMORY, "the KV cache is full", "send fewer requests")


class CrashingBackend(EchoBackend):
    """Its worker dies after the first token of any request."""

    async def answer(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(token_ids=request.prompt_ids[:1])
        self.die()
        raise Fault(FaultKind.MODEL_CRASHED, "the worker was killed", "it is being restarted; try again")


class BrokenBackend(EchoBackend):
    """Cannot be loaded."""

    async def load(self, spec: ModelSpec, progress: Progress) -> ModelInfo:
        raise Fault(FaultKind.INVALID_MODEL, f"{spec.name} lacks a tensor", "package it again")


class ScriptedBackend(EchoBackend):
    """Answers with the events it was given."""

    def __init__(self, events: Sequence[TokenEvent]) -> None:
        super().__init__()
        self._events = list(events)

    async def answer(self, request: TokenRequest) -> AsyncIterator[TokenEvent]:
        for event in self._events:
            yield event
            await self.step()


def choice(token_id: int, top: int) -> TokenChoice:
    return TokenChoice(token_id, -0.5, tuple((rank, -0.5 * (rank + 1)) for rank in range(top)))


class FakeBackends:
    """The registry's factory: makes a fake by the name of the model's backend, and remembers it."""

    kinds: Mapping[str, Callable[[], EchoBackend]] = {
        "echo": EchoBackend,
        "mock": EchoBackend,
        "slow": SlowBackend,
        "failing": FailingBackend,
        "crashing": CrashingBackend,
        "broken": BrokenBackend,
    }

    def __init__(self, kinds: Mapping[str, Callable[[], EchoBackend]] | None = None) -> None:
        self._kinds = {**self.kinds, **(kinds or {})}
        self.made: list[tuple[ModelSpec, EchoBackend]] = []

    def __call__(self, spec: ModelSpec) -> ManagedBackend:
        if spec.backend not in self._kinds:
            message = f"backend {spec.backend} is not available in this installation"
            raise Fault(FaultKind.UNSUPPORTED, message, "install it")
        backend = self._kinds[spec.backend]()
        self.made.append((spec, backend))
        return backend

    def last(self, name: str) -> EchoBackend:
        """The newest backend of a model."""
        return next(backend for spec, backend in reversed(self.made) if spec.name == name)


async def fake_service(
    tmp_path: Path,
    models: Sequence[str] = ("echo",),
    *,
    backends: FakeBackends | None = None,
    limits: ServiceLimits | None = None,
    default_model: str | None = None,
    log_line: LogLine | None = None,
) -> DaemonService:
    """A started service. Each model uses the fake backend of its own name, or ``echo``.

    Folders that the test wrote into ``tmp_path`` before are served as they are.
    """
    backends = backends or FakeBackends()
    for name in models:
        if not (tmp_path / name).exists():
            write_model(tmp_path, name, backend=name if name in backends.kinds else "echo")
    config = RegistryConfig(repositories=(tmp_path,), default_model=default_model, drain_s=5.0)
    registry = Registry(config, backends, prepare_text_model)
    service = DaemonService(registry, limits, log_line)
    await service.start()
    return service


def request_of(text: str | None = None, **fields: Any) -> GenerateRequest:
    """A request with an id and a dialect; ``sampling`` may be a dict."""
    sampling = fields.pop("sampling", {})
    if isinstance(sampling, Mapping):
        sampling = Sampling(**sampling)
    values: dict[str, Any] = {"request_id": "r1", "dialect": "mindie", "text": text, "sampling": sampling}
    return GenerateRequest(**{**values, **fields})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for differs, and no code under test tells
            await asyncio.sleep(0.001)


def user(content: str) -> list[Message]:
    return [Message(role="user", content=content)]
