"""The program on a terminal: streaming by default, statistics, colours, the chat's prompt, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import pytest

from tests.client.scripted import DONE, event, scripted, streamed
from tests.client.test_cli import environment
from tests.daemon.grpc_api.running import RunningDaemon

PROGRAM = [
    sys.executable,
    "-W",
    "error",
    "-c",
    # Standard input becomes the controlling terminal, so that Ctrl-C reaches the process.
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from client.cli import main; main()",
]
USAGE = event(usage={"prompt_tokens": 3, "completion_tokens": 2})
LIMIT_S = 15


class Terminal:
    """A process with a terminal for all three streams."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, words: str) -> str:
        """What was shown since the last call, up to and with ``words``."""
        assert self._comes(words, LIMIT_S), f"{words!r} did not come, but {self._seen!r}"
        shown, _, self._seen = self._seen.partition(words)
        return shown + words

    def interrupt(self, words: str) -> None:
        """Ctrl-C until ``words`` come: readline misses a signal between its prompt and its wait for keys."""
        for _ in range(LIMIT_S):
            self.type("\x03")
            if self._comes(words, 1.0):
                break
        self.until(words)

    def _comes(self, words: str, limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while words not in self._seen:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            self._seen += os.read(self._descriptor, 4096).decode("utf-8", "ignore")
        return True

    def end(self) -> int:
        return self.process.wait(LIMIT_S)


@contextlib.contextmanager
def terminal(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    plain = {"TERM": "xterm", "INPUTRC": "/dev/null", **(env or {})}
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(plain),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_generate_streams_and_counts() -> None:
    with (
        scripted(streamed(event("你\x1b[31m"), event("好", "stop"), USAGE, DONE)) as (url, server),
        terminal("generate", "--url", url, "x", env={"NO_COLOR": "1"}) as shown,
    ):
        text = shown.until("finished: stop")
        assert shown.end() == 0
        assert server.bodies[0]["stream"] is True
    assert "你[31m好\r\n" in text, "control characters of the model do not reach the terminal"
    assert "3 + 2 tokens" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("env", "coloured"), [({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours(env: dict[str, str], coloured: bool) -> None:
    with terminal("generate", "--url", "http://127.0.0.1:9", "x", env=env) as shown:
        assert ("\x1b[" in shown.until("hint")) is coloured
        assert shown.end() == 5


def test_chat(daemon: RunningDaemon) -> None:
    backend = daemon.backend("slow")
    with terminal("chat", "--url", daemon.http_url, "-m", "slow", env={"NO_COLOR": "1"}) as shown:
        shown.until(">>> ")
        shown.type("/set max_tokens 2\n")
        shown.until(">>> ")
        daemon.allow(2)
        shown.type("Hello world\n")
        assert "tokens" in shown.until("finished: length")
        shown.until(">>> ")
        shown.type("/set max_tokens 100\n")
        shown.until(">>> ")
        shown.type("Hello again\n")
        daemon.wait_for(lambda: backend.running == 1)
        shown.type("\x03")
        shown.until("stopped")
        daemon.wait_for(lambda: backend.running == 0)
        shown.until(">>> ")
        shown.interrupt("Ctrl-D ends the chat")
        shown.until(">>> ")
        shown.type("/nonsense\n")
        shown.until("there is no command /nonsense")
        shown.until(">>> ")
        shown.type("/show\n")
        assert "turns        1" in shown.until(">>> ")
        shown.type("\x04")
        assert shown.end() == 0
