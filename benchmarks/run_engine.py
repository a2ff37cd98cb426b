"""The engine without the daemon: python -m benchmarks.run_engine DIRECTORY THREADS OPTIONS.

Besides prompts it takes ``{"score": [[ids]]}`` and answers the likeliest next token after each of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from benchmarks.peers.answering import own_output
from contract.faults import Fault
from daemon.backends.base import ModelSpec, TokenRequest, TokenSampling
from daemon.backends.ms.backend import MsBackend


class Asked:
    """One loaded model that answers lines."""

    def __init__(self, backend: MsBackend) -> None:
        self._backend = backend
        self._requests = 0

    async def answer(self, task: Mapping[str, Any]) -> dict[str, Any]:
        if "score" in task:
            return {"next": await asyncio.gather(*map(self._score, task["score"]))}
        begin = time.perf_counter()
        parts = [self._stream(prompt, task["max_tokens"], begin) for prompt in task["prompts"]]
        answers = await asyncio.gather(*parts)
        return {"tokens": [tokens for tokens, _ in answers], "times": [times for _, times in answers]}

    async def _stream(
        self, prompt: list[int], max_tokens: int, begin: float
    ) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        times: list[float] = []
        async for event in self._backend.generate(self._request(prompt, max_tokens)):
            tokens += event.token_ids
            times += [time.perf_counter() - begin] * len(event.token_ids)
        return tokens, times

    async def _score(self, prompt: list[int]) -> list[int]:
        """Teacher-forced: what the model would have said after each token but the last."""
        likeliest: list[int] = []
        async for event in self._backend.generate(self._request(prompt, 1, prompt_logprobs=1)):
            likeliest += [choice.top[0][0] for choice in event.prompt_choices or ()]
        return likeliest

    def _request(
        self, prompt: list[int], max_tokens: int, prompt_logprobs: int | None = None
    ) -> TokenRequest:
        self._requests += 1
        sampling = TokenSampling(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)
        return TokenRequest(request_id=str(self._requests), prompt_ids=prompt, sampling=sampling)


async def main(out: TextIO, directory: str, threads: int, options: Mapping[str, Any]) -> None:
    backend = MsBackend()
    spec = ModelSpec(
        name="benchmark",
        version="1",
        directory=str(Path(directory)),
        backend="ms",
        options=dict(options),
        threads=threads,
    )
    try:
        info = await backend.load(spec, lambda fraction, text: None)
        said: dict[str, Any] = {"ready": True, "memory_bytes": info.memory_bytes}
    except Fault as fault:
        said = {"error": str(fault)}
    print(json.dumps(said), file=out, flush=True)
    asked = Asked(backend)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            said = await asked.answer(json.loads(line))
        except Fault as fault:
            said = {"error": str(fault)}
        print(json.dumps(said), file=out, flush=True)
    await backend.unload()


if __name__ == "__main__":
    asyncio.run(main(own_output(), sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
