"""Under load: many streams, a worker that dies, answers that do not depend on company."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import openai
from openai import AsyncOpenAI

from tests.scenarios.conftest import MODEL, add_mock
from tests.scenarios.terminal import RunningDaemon, run, running_daemon

STREAMS = 16
SECONDS = float(os.environ.get("STREAMS_SECONDS", "5"))
"""A minute shows more: STREAMS_SECONDS=60."""

QUESTIONS = (
    "生抽与老抽的区别？",
    "你是谁？",
    "3 加 4 等于多少？",
    "What is the capital of France?",
    "什么是人工智能？",
)


async def ask(client: AsyncOpenAI, question: str, model: str = MODEL, max_tokens: int = 48) -> str:
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=max_tokens,
        stream=True,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


def connect(daemon: RunningDaemon) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{daemon.http}/v1", api_key="none", max_retries=0, timeout=120)


async def test_sixteen_streams_never_fail_and_never_influence_one_another(daemon: RunningDaemon) -> None:
    async with connect(daemon) as client:
        alone = {question: await ask(client, question) for question in QUESTIONS}
        end = time.monotonic() + SECONDS

        async def keep_asking(start: int) -> int:
            asked = 0
            while time.monotonic() < end:
                question = QUESTIONS[(start + asked) % len(QUESTIONS)]
                assert await ask(client, question) == alone[question]
                asked += 1
            return asked

        counts = await asyncio.gather(*(keep_asking(start) for start in range(STREAMS)))
    assert min(counts) > 0


async def test_killing_a_worker_fails_its_requests_only(packaged: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(packaged, repository)
    add_mock(repository, "echo", tokens_per_s=100)
    with running_daemon(repository, tmp_path / "state") as daemon:
        worker = next(model["pid"] for model in daemon.models() if model["name"] == MODEL)
        async with connect(daemon) as client:
            gaps = asyncio.create_task(longest_gap(client))
            victims = [asyncio.create_task(until_fault(client)) for _ in range(8)]
            await asyncio.sleep(1.0)
            killed = time.monotonic()
            os.kill(worker, signal.SIGKILL)
            faults = await asyncio.gather(*victims)
            assert time.monotonic() - killed < 1.0
            assert all("telechat2_tiny" in fault for fault in faults), faults
            ready = await asyncio.to_thread(
                run, "client", "health", "--http", daemon.http, "--wait", "60", "-m", MODEL
            )
            assert ready.code == 0, ready.err
            assert await ask(client, QUESTIONS[0])
            assert await gaps < 0.5
        models = {model["name"]: model for model in daemon.models()}
        assert models[MODEL]["pid"] != worker
        assert models[MODEL]["restarts"] == 1


async def until_fault(client: AsyncOpenAI) -> str:
    try:
        while True:
            await ask(client, QUESTIONS[0], max_tokens=200)
    except openai.APIError as error:
        return str(error)


async def longest_gap(client: AsyncOpenAI) -> float:
    """The longest pause between tokens of the mock model over three seconds."""
    stream = await client.completions.create(
        model="echo", prompt="one two three", max_tokens=300, stream=True
    )
    last, longest = time.monotonic(), 0.0
    async for _chunk in stream:
        now = time.monotonic()
        last, longest = now, max(longest, now - last)
    return longest
