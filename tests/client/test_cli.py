"""The program ``client`` as a real process: what it prints where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import client.cli
from client.cli.options import Connection, connection_options
from tests.client.scripted import DONE, Reply, completion, event, scripted, streamed
from tests.daemon.grpc_api.running import RunningDaemon

PROGRAM = [sys.executable, "-W", "error", "-c", "from client.cli import main; main()"]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
ANSWER = streamed(event("你"), event("好", "stop"), event(usage=USAGE), DONE)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINDPORT_")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **(extra or {})}


def run(
    *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(env),
        timeout=30,
        check=False,
    )


Here = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def here(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Here:
    """The program without a process of its own, where starting one proves nothing more."""
    monkeypatch.delenv("MINDPORT_URL", raising=False)

    def call(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = client.cli.run(arguments)
        out, err = capfdbinary.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return call


def test_generate_over_both_transports(url: str) -> None:
    done = run("generate", "-m", "echo", "--url", url, "生抽与老抽", "-v")
    assert done.returncode == 0
    assert done.stdout.decode().startswith("生抽与老抽")
    assert done.stdout.endswith(b"\n")
    assert b"tokens" in done.stderr
    assert b"finished: stop" in done.stderr


def test_answer_alone_is_on_stdout() -> None:
    with scripted(completion("hi")) as (url, _):
        done = run("generate", "--url", url, "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hi\n", b"")


def test_json() -> None:
    with scripted(completion("hi")) as (url, _):
        data = json.loads(run("generate", "--url", url, "--json", "x").stdout)
    assert list(data) == ["text", "finish_reason", "usage", "model", "timings", "request_id"]
    assert data["text"] == "hi"


def test_json_lines() -> None:
    with scripted(ANSWER) as (url, _):
        lines = run("generate", "--url", url, "--json", "--stream", "x").stdout.splitlines()
    chunks = [json.loads(line) for line in lines]
    assert [chunk["type"] for chunk in chunks] == ["chunk", "chunk", "answer"]
    assert chunks[-1]["text"] == "你好"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


def test_options_reach_the_server(here: Here) -> None:
    with scripted(completion()) as (url, server):
        here("generate", "--url", url, "--temperature", "0", "--seed", "0", "--stop", "a", "--stop", "b", "x")
        here("generate", "--http", url, "--system", "brief", "x")
        here("generate", "--url", url, "--raw", "--top-k", "5", "x")
    assert server.bodies[0]["temperature"] == 0
    assert server.bodies[0]["seed"] == 0
    assert server.bodies[0]["stop"] == ["a", "b"]
    assert server.bodies[1]["messages"][0] == {"role": "system", "content": "brief"}
    assert (server.bodies[2]["prompt"], server.bodies[2]["top_k"]) == ("x", 5)


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_prompt_from_stdin(arguments: tuple[str, ...]) -> None:
    with scripted(completion()) as (url, server):
        done = run("generate", *arguments, stdin="\ufeff你好\n第二行\n".encode(), env={"MINDPORT_URL": url})
    assert done.returncode == 0
    assert server.bodies[0]["messages"][0]["content"] == "你好\n第二行"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (("generate",), b"", 2, "the prompt is empty"),
        (("generate", " "), b"", 2, "the prompt is empty"),
        (("generate",), b"\xff", 2, "not UTF-8"),
        (("generate", "--nonsense"), b"", 2, "nonsense"),
        (("generate", "--raw", "--system", "a", "x"), b"", 2, "--system"),
        (("generate", "--http", "--grpc", "x"), b"", 2, "give one of"),
        (("generate", "--url", "nonsense://x", "x"), b"", 2, "not an address"),
        (("generate", "--http", "b", "a"), b"", 2, "'b' is not an address"),
        (("generate", "--logprobs", "1", "--grpc", "127.0.0.1:9", "x"), b"", 2, "over gRPC"),
        (("generate", "--url", "http://127.0.0.1:9", "x"), b"", 5, "daemon start"),
        (("generate", "--grpc", "127.0.0.1:9", "x"), b"", 5, "daemon start"),
        (("health", "--url", "http://127.0.0.1:9"), b"", 5, "daemon start"),
        (("health", "--url", "http://127.0.0.1:9", "--wait", "0.1"), b"", 5, "not ready after"),
        (("models", "--url", "grpc://127.0.0.1:9"), b"", 5, "daemon start"),
    ],
)
def test_failures(here: Here, arguments: tuple[str, ...], stdin: bytes, code: int, words: str) -> None:
    done = here(*arguments, stdin=stdin)
    assert done.returncode == code, done.stderr.decode()
    assert done.stdout == b""
    assert words in done.stderr.decode()
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


def test_failure_of_the_program() -> None:
    done = run("generate", "--url", "http://127.0.0.1:9", "x")
    assert (done.returncode, done.stdout) == (5, b"")
    assert done.stderr.startswith(b"error: no server answers at http://127.0.0.1:9")
    assert done.stderr.endswith(b"hint: start it with: daemon start\n")


@pytest.mark.parametrize(
    ("status", "code"), [(404, 4), (503, 5), (401, 6), (400, 2), (500, 1), (413, 6), (504, 5)]
)
def test_exit_code_of_each_refusal(here: Here, status: int, code: int) -> None:
    with scripted(Reply(status, ('{"error": {"message": "no such thing (do this)"}}',))) as (url, _):
        done = here("generate", "--url", url, "x")
    assert done.returncode == code
    assert done.stderr.startswith(b"error: no such thing\nhint: ")


def test_prompt_after_a_bare_transport_option() -> None:
    @connection_options
    def command(connection: Connection, prompt: str | None) -> tuple[str, str | None]:
        return connection.url, prompt

    others = {"url": None, "http": None, "api_key": None, "timeout": None, "prompt": None}
    assert command(grpc="你好", **others) == ("grpc://127.0.0.1:8001", "你好")


def test_streams_to_a_pipe_as_text_comes_and_ctrl_c_cancels(daemon: RunningDaemon, url: str) -> None:
    backend = daemon.backend("slow")
    command = [*PROGRAM, "generate", "-m", "slow", "--url", url, "--stream", "--ignore-eos", "Hello world"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        daemon.allow(2)
        assert process.stdout.read(2)
        assert backend.running == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        daemon.wait_for(lambda: backend.running == 0)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_before_the_first_token(daemon: RunningDaemon, url: str) -> None:
    backend = daemon.backend("slow")
    command = [*PROGRAM, "generate", "-m", "slow", "--url", url, "Hello world"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        daemon.wait_for(lambda: backend.running == 1, 20)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        daemon.wait_for(lambda: backend.running == 0)


def test_closed_pipe_ends_quietly(daemon: RunningDaemon) -> None:
    backend = daemon.backend("slow")
    command = [
        *PROGRAM,
        "generate",
        "-m",
        "slow",
        "--url",
        daemon.http_url,
        "--stream",
        "--ignore-eos",
        "Hello",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        daemon.allow(3)
        process.stdout.read(1)
        process.stdout.close()
        daemon.allow(50)
        assert process.wait(15) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    daemon.wait_for(lambda: backend.running == 0)


def test_broken_answer_ends_its_line() -> None:
    with scripted(streamed(event("half"))) as (url, _):
        done = run("generate", "--url", url, "--stream", "x")
    assert (done.returncode, done.stdout) == (1, b"half\n")
    assert b"before the answer was complete" in done.stderr


def test_models(here: Here, daemon: RunningDaemon, url: str) -> None:
    done = here("models", "--url", url)
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["MODEL", "VERSION", "STATE", "CONTEXT"]
    assert [line.split()[:3] for line in lines[1:]] == [
        [name, "1", "READY"] for name in ("crashing", "echo", "failing", "slow")
    ]
    cards = json.loads(here("models", "--url", url, "--json").stdout)
    assert {card["name"] for card in cards} == {"crashing", "echo", "failing", "slow"}


def test_health(here: Here, daemon: RunningDaemon, url: str) -> None:
    done = here("health", "--url", url, "--wait", "5")
    assert done.returncode == 0
    assert b"is ready" in done.stdout
    assert json.loads(here("health", "--url", url, "-m", "echo", "--json").stdout)["ok"] is True
    daemon.on_loop(daemon.service.unload("echo"))
    done = here("health", "--url", url, "-m", "echo", "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["ok"] is False
    done = here("health", "--url", url, "-m", "echo")
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"model 'echo' is not ready: version 1" in done.stderr
    assert here("health", "--url", url, "-m", "nobody").returncode == 4


def test_chat_in_a_pipe(tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    script = (
        f'hello\n/set temperature 0\n"""\ntwo\nlines\n"""\n/retry\n/undo\n/save {saved}\n/show\n/bye\nnever\n'
    )
    with scripted(ANSWER) as (url, server):
        done = run("chat", "--url", url, "--system", "brief", stdin=script.encode())
    assert done.returncode == 0
    assert done.stdout.decode() == "你好\n" * 3
    assert len(server.bodies) == 3
    last = [message["content"] for message in server.bodies[2]["messages"]]
    assert last == ["brief", "hello", "你好", "two\nlines"]
    assert server.bodies[2]["temperature"] == 0
    assert "temperature" not in server.bodies[0]
    assert [message["content"] for message in json.loads(saved.read_text())["messages"]] == last[:3]
    assert b"turns        1" in done.stderr


@pytest.mark.parametrize("line", ["/nonsense", "/set", "/set temperature hot", "/retry", "/undo", "/save"])
def test_wrong_command_in_a_pipe_ends_the_chat(here: Here, line: str) -> None:
    done = here("chat", "--url", "http://127.0.0.1:9", stdin=f"{line}\n".encode())
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")


@pytest.mark.parametrize("command", [(), ("generate",), ("chat",), ("models",), ("health",)])
def test_help_has_examples(here: Here, command: tuple[str, ...]) -> None:
    done = here(*command, "--help")
    assert done.returncode == 0
    assert b"Examples:" in done.stdout
