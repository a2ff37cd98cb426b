"""The client against the real front ends, the same tests over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Unpack

import pytest

from client import (
    Answer,
    AsyncClient,
    Client,
    ClientError,
    ContextOverflowError,
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    OptionFields,
    ServerError,
    UnauthenticatedError,
)
from contract.faults import FaultKind
from tests.daemon.grpc_api.running import RunningDaemon, running_daemon


def ask(client: Client, streaming: bool, **options: Unpack[OptionFields]) -> Answer:
    return client.stream("Hello", **options).answer() if streaming else client.generate("Hello", **options)


def test_generate_is_a_chat(client: Client) -> None:
    answer = client.generate("生抽与老抽", model="echo", temperature=0)
    assert answer.text.startswith("生抽与老抽")
    assert answer.finish_reason == "stop"
    assert answer.model == "echo"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 1
    assert answer.usage.completion_tokens > 1
    assert answer.timings.total_s > 0
    assert len(answer.request_id) == 32


def test_raw_continues_the_text(client: Client) -> None:
    answer = client.generate("Hello world", model="echo", raw=True, max_tokens=3, ignore_eos=True)
    assert "Hello world".startswith(answer.text)
    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_urgency_reaches_the_engine(client: Client, daemon: RunningDaemon) -> None:
    client.generate("Hello", model="echo", priority=-3)
    assert daemon.backend("echo").requests[-1].priority == -3


def test_stream_gives_the_same_in_pieces(client: Client) -> None:
    whole = client.generate("生抽与老抽的区别？", model="echo")
    with client.stream("生抽与老抽的区别？", model="echo") as stream:
        chunks = list(stream)
        answer = stream.answer()
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert "".join(chunk.text for chunk in chunks) == whole.text == answer.text
    assert (answer.usage, answer.finish_reason) == (whole.usage, whole.finish_reason)
    assert answer.tokens_per_s is not None
    assert answer.timings.first_token_s <= answer.timings.total_s


@pytest.mark.parametrize("raw", [False, True])
def test_default_length_is_the_rest_of_the_context(client: Client, raw: bool) -> None:
    answer = client.generate("Hello", model="echo", ignore_eos=True, raw=raw)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 512
    assert answer.finish_reason == "length"


def test_chat_with_history(client: Client) -> None:
    messages = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "world"},
        {"role": "user", "content": "again"},
    ]
    answer = client.chat(messages, model="echo")
    assert "brief" in answer.text
    assert client.stream_chat(messages, model="echo").answer().text == answer.text


def test_default_model(client: Client) -> None:
    assert client.generate("Hello").model == "echo"


def test_model_with_version(client: Client) -> None:
    assert client.generate("Hello", model="echo@1").text


def test_cancelling_a_stream_cancels_in_the_engine(client: Client, daemon: RunningDaemon) -> None:
    backend = daemon.backend("slow")
    stream = client.stream("Hello world", model="slow", ignore_eos=True)
    daemon.allow(1)
    first = next(stream)
    daemon.wait_for(lambda: backend.running == 1)
    stream.cancel()
    daemon.wait_for(lambda: backend.running == 0)
    assert list(stream) == []
    answer = stream.answer()
    assert answer.finish_reason == "cancelled"
    assert answer.text.startswith(first.text)


def test_cancel_from_another_thread_ends_the_iteration(client: Client, daemon: RunningDaemon) -> None:
    backend = daemon.backend("slow")
    with client.stream("Hello world", model="slow") as stream:

        def cancel() -> None:
            daemon.wait_for(lambda: backend.running == 1)
            stream.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        for _ in stream:
            pass
        thread.join(10)
    daemon.wait_for(lambda: backend.running == 0)


def test_leaving_the_block_cancels(client: Client, daemon: RunningDaemon) -> None:
    backend = daemon.backend("slow")
    with contextlib.suppress(KeyError), client.stream("Hello", model="slow") as stream:
        daemon.allow(1)
        next(stream)
        raise KeyError
    daemon.wait_for(lambda: backend.running == 0)


@pytest.mark.parametrize("streaming", [True, False])
def test_deadline_cancels_in_the_engine(client: Client, daemon: RunningDaemon, streaming: bool) -> None:
    backend = daemon.backend("slow")
    with pytest.raises(ClientError, match="time allowed") as caught:
        ask(client, streaming, model="slow", timeout_s=0.3)
    assert caught.value.kind is FaultKind.TIMEOUT
    assert caught.value.exit_code == 5
    assert caught.value.request_id
    daemon.wait_for(lambda: backend.running == 0)


async def test_cancelling_a_task_cancels_in_the_engine(daemon: RunningDaemon, url: str) -> None:
    backend = daemon.backend("slow")
    async with AsyncClient(url) as client:
        task = asyncio.create_task(client.generate("Hello", model="slow"))
        await asyncio.to_thread(daemon.wait_for, lambda: backend.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(daemon.wait_for, lambda: backend.running == 0)


async def test_requests_side_by_side(url: str) -> None:
    async with AsyncClient(url) as client:
        answers = await asyncio.gather(*(client.generate(f"Hello {n}", model="echo") for n in range(10)))
    assert [answer.text.startswith(f"Hello {n}") for n, answer in enumerate(answers)] == [True] * 10


def test_unknown_model(client: Client) -> None:
    with pytest.raises(ModelNotFoundError, match="nobody") as caught:
        client.generate("Hello", model="nobody")
    assert caught.value.exit_code == 4
    assert caught.value.hint


@pytest.mark.parametrize("streaming", [True, False])
def test_engine_failure_keeps_its_kind_and_hint(client: Client, streaming: bool) -> None:
    with pytest.raises(ServerError, match="KV cache is full") as caught:
        ask(client, streaming, model="failing")
    assert caught.value.kind in {FaultKind.OUT_OF_MEMORY, FaultKind.INTERNAL}
    assert caught.value.hint == "send fewer requests"


def test_prompt_that_is_too_long(client: Client) -> None:
    with pytest.raises(ContextOverflowError, match="tokens"):
        client.generate("Hello world " * 400, model="echo")


def test_value_out_of_range(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="top_p"):
        client.generate("Hello", model="echo", top_p=7.0)


def test_models(client: Client) -> None:
    cards = {card.name: card for card in client.models()}
    assert set(cards) == {"echo", "slow", "failing", "crashing"}
    assert cards["echo"].ready
    assert cards["echo"].version == "1"
    assert cards["echo"].context_len == 512


def test_health(client: Client) -> None:
    health = client.health()
    assert (health.live, health.ready, health.ok) == (True, True, True)
    assert health.server.startswith("mindport")
    assert client.health("echo").ok
    assert not client.health("nobody").ok


def test_wait_ready(client: Client, daemon: RunningDaemon) -> None:
    assert client.wait_ready(5, "echo").ok
    with pytest.raises(ModelNotFoundError, match="nobody"):
        client.wait_ready(5, "nobody")
    daemon.on_loop(daemon.service.unload("echo"))
    with pytest.raises(NotReadyError, match="not ready after"):
        client.wait_ready(0.1, "echo")
    threading.Timer(0.2, lambda: daemon.on_loop(daemon.service.load("echo"))).start()
    assert client.wait_ready(10, "echo").ok


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_key(tmp_path: Path, scheme: str) -> None:
    digest = hashlib.sha256(b"secret-key").hexdigest()
    with running_daemon(tmp_path, ("echo",), with_http=True, api_keys=(digest,)) as daemon:
        url = daemon.http_url if scheme == "http" else f"grpc://{daemon.grpc_address}"
        for key in (None, "wrong"):
            with Client(url, api_key=key) as client, pytest.raises(UnauthenticatedError) as caught:
                client.generate("Hello")
            assert "MINDPORT_API_KEY" in caught.value.hint
            assert caught.value.exit_code == 6
        with Client(url) as client:
            assert client.health().ready
            assert client.health("echo").ok
            with pytest.raises(NotReadyError, match="with a key only"):
                client.wait_ready(0, "nobody")
        with Client(url, api_key="wrong") as client:
            assert client.health("echo").ok
        with Client(url, api_key="secret-key") as client:
            assert client.generate("Hello").text


def test_several_threads_share_a_client(client: Client) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(client.generate("Hello", model="echo").text))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(texts) == 8
    assert len(set(texts)) == 1


def test_closing_the_client_cancels_what_is_under_way(daemon: RunningDaemon, url: str) -> None:
    backend = daemon.backend("slow")
    client = Client(url)
    stream = client.stream("Hello", model="slow")
    daemon.allow(1)
    next(stream)
    client.close()
    client.close()
    daemon.wait_for(lambda: backend.running == 0)
    with pytest.raises(RuntimeError, match="closed"):
        client.health()


def test_client_may_be_left_open(daemon: RunningDaemon, url: str) -> None:
    code = f"from client import Client; print(Client({url!r}).generate('Hello', model='echo').text)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Hello")
