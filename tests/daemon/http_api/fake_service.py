"""A service without models: it answers with the words of the prompt, and obeys orders in it.

``!KIND`` as the prompt raises a fault of that kind before the request is accepted, ``!after KIND`` fails
after two words, ``!forever`` never ends, ``!bug`` and ``!bug-after`` are defects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from contract.faults import Fault, FaultKind
from contract.generation import (
    Delta,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    Started,
    TokenLogprob,
    Usage,
)
from daemon.repository.status import ModelStatus, State

EOS = 2


def status(name: str, version: str = "1", state: State = State.READY, **more: Any) -> ModelStatus:
    facts: dict[str, Any] = {"context_len": 64, "max_input_tokens": 63, "ready_since": 1.7e9, **more}
    return ModelStatus(name=name, version=version, state=state, backend="mock", **facts)


def token_id(word: str) -> int:
    return 10 + sum(word.encode()) % 1000


def logprob(word: str, rivals: int) -> TokenLogprob:
    top = tuple((token_id(word) + rank, f"{word}{rank or ''}", -0.5 - rank) for rank in range(rivals))
    return TokenLogprob(token_id(word), word, -0.5, top, word.encode())


class FakeService:
    def __init__(self) -> None:
        self.statuses = [
            status("other", state=State.LISTED),
            status("tiny", "1"),
            status("tiny", "2"),
            status("torn", state=State.BROKEN, reason="weights are missing"),
        ]
        self.requests: list[GenerateRequest] = []
        self.closed = asyncio.Event()
        """A request ended before its end."""
        self.controlled: list[tuple[str, str, str]] = []
        self.is_ready = True

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        found = self.find(request.model)
        prompt = prompt_of(request)
        if prompt == "!bug":
            raise RuntimeError("secret detail")
        if prompt.startswith("!") and prompt[1:] in list(FaultKind):
            raise Fault(FaultKind(prompt[1:]), f"the prompt asked for {prompt[1:]}", "ask for less")
        try:
            async for event in self._events(request, found, prompt):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.set()
            raise

    async def _events(
        self, request: GenerateRequest, found: ModelStatus, prompt: str
    ) -> AsyncGenerator[Event, None]:
        words = prompt.split()
        sampling = request.sampling
        yield Started(
            model=found.name,
            version=found.version,
            prompt_token_ids=[token_id(word) for word in words],
            prompt_text=prompt,
            prompt_logprobs=_prompt_logprobs(words, sampling.prompt_logprobs),
        )
        answer = words * 10**6 if prompt == "!forever" else words[::-1]
        limit = min(sampling.max_tokens or request.default_max_tokens or 32, len(answer))
        for position in range(limit):
            await asyncio.sleep(0.01 if prompt == "!forever" else 0)
            if position == 2 and prompt.startswith("!after "):
                yield Failed(Fault(FaultKind(words[1]), "it broke").to_dict())
                return
            if position == 1 and prompt.startswith("!bug-after"):
                raise RuntimeError("secret detail")
            for index in range(request.n):
                yield _delta(answer[position], position, index, sampling.logprobs)
        for index in range(request.n):
            yield _ending(len(answer) > limit, index)
        yield Finished(Usage(len(words), limit * request.n, cached_tokens=1), 0.1, 0.2, 0.3)

    def models(self) -> list[ModelStatus]:
        return list(self.statuses)

    def find(self, model: str | None, version: str = "") -> ModelStatus:
        name, _, asked = (model or "tiny").partition("@")
        version = version or asked
        found = [
            one
            for one in self.statuses
            if one.name == name and (not version or one.version == version) and one.state is State.READY
        ]
        if not found:
            names = ", ".join(sorted({one.name for one in self.statuses}))
            raise Fault(FaultKind.NOT_FOUND, f"there is no model '{model}'", f"models: {names}")
        return found[-1]

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self.is_ready

    async def load(self, name: str, version: str = "") -> None:
        if name == "torn":
            raise Fault(FaultKind.INVALID_MODEL, "weights are missing")
        if name not in {one.name for one in self.statuses}:
            raise Fault(FaultKind.NOT_FOUND, f"there is no model '{name}'")
        self.controlled.append(("load", name, version))

    async def unload(self, name: str, version: str = "") -> None:
        if name not in {one.name for one in self.statuses}:
            raise Fault(FaultKind.NOT_FOUND, f"there is no model '{name}'")
        self.controlled.append(("unload", name, version))

    async def load_adapter(self, model: str | None, name: str, directory: str) -> None:
        self.controlled.append(("load_adapter", f"{model}/{name}", directory))

    async def unload_adapter(self, name: str) -> None:
        if ("unload_adapter", name, "") in self.controlled:
            raise Fault(FaultKind.NOT_FOUND, f"there is no adapter '{name}'")
        self.controlled.append(("unload_adapter", name, ""))

    async def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        found = self.find(name or None, version)
        return [{"name": found.name, "version": found.version, "inference_count": len(self.requests)}]

    async def tokenize(self, model: str | None, text: str) -> list[int]:
        return [token_id(word) for word in text.split()]

    async def cancel(self, request_id: str) -> bool:
        return request_id == "running"


def prompt_of(request: GenerateRequest) -> str:
    if request.messages is not None:
        return request.messages[-1].content
    if request.token_ids is not None:
        return " ".join(str(token) for token in request.token_ids)
    return request.text or ""


def _prompt_logprobs(words: list[str], rivals: int | None) -> list[TokenLogprob] | None:
    if rivals is None:
        return None
    first = [TokenLogprob(token_id(word), word, None) for word in words[:1]]
    return first + [logprob(f" {word}", rivals) for word in words[1:]]


def _delta(word: str, position: int, index: int, rivals: int | None) -> Delta:
    text = f" {word}" if position else word
    entries = None if rivals is None else [logprob(text, rivals)]
    return Delta(text=text, token_ids=[token_id(text)], index=index, logprobs=entries)


def _ending(cut: bool, index: int) -> Delta:
    if cut:
        return Delta(text="", token_ids=[], index=index, finish_reason="length")
    return Delta(text="", token_ids=[EOS], index=index, finish_reason="stop", stop_match=EOS)
