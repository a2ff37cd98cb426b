"""A daemon's life as its operator sees it: real processes, every way to start and to stop them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fakes import write_model

ROOT = Path(__file__).parents[2]
PORTS = [word for name in ("http", "management", "metrics", "grpc") for word in (f"--{name}-port", "0")]


class Operator:
    """Types commands for one state directory."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.repository = folder / "repository"
        self.repository.mkdir()

    def model(self, name: str, **options: Any) -> Path:
        return write_model(self.repository, name, backend="mock", serving={"options": options})

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "daemon.cli", *words, "--state-dir", str(self.state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        with self.begin(*words) as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err

    def starting(self, *flags: str) -> list[str]:
        return ["start", "--repository", str(self.repository), *PORTS, *flags]

    def start(self, *flags: str) -> dict[str, Any]:
        code, out, err = self.run(*self.starting("--json", *flags))
        assert code == 0, err
        info: dict[str, Any] = json.loads(out)
        return info

    def status(self) -> dict[str, Any]:
        code, out, _ = self.run("status", "--json")
        assert code in (0, 5)
        answer: dict[str, Any] = json.loads(out)
        return answer

    def until_starting(self) -> None:
        deadline = time.monotonic() + 20
        while "http" not in self.info() and time.monotonic() < deadline:
            time.sleep(0.05)

    def info(self) -> dict[str, Any]:
        try:
            info: dict[str, Any] = json.loads((self.state / "daemon.json").read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return info


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(tmp_path)
    yield operator
    operator.run("stop", "--force")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if (Path("/proc") / str(pid) / "stat").read_text("utf-8").split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


def answer_of(info: dict[str, Any], tokens: int) -> Iterator[str]:
    """The lines of a stream; the first is there before the caller goes on."""
    body = {"prompt": "Hello world", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    with httpx2.stream("POST", f"{info['http']}/v1/completions", json=body, timeout=30) as response:
        yield from response.iter_lines()


def test_stopping_twice_cuts_nothing_short_and_force_does(operator: Operator) -> None:
    operator.model("m", tokens_per_s=20)
    info = operator.start()
    lines = answer_of(info, 40)
    next(lines)
    code, _, err = operator.run("stop", "--timeout", "0.1")
    assert (code, "still running" in err) == (5, True)
    assert operator.status()["stopping"] is True
    refused = httpx2.post(f"{info['http']}/v1/completions", json={"prompt": "x"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert operator.run("stop")[0] == 0
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert gone(info["pid"])

    info = operator.start()
    lines = answer_of(info, 400)
    next(lines)
    assert operator.run("stop", "--force")[0] == 0
    last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
    assert last["error"]["code"] == "not_ready"
    assert gone(info["pid"])


def test_force_ends_a_daemon_that_hears_nothing(operator: Operator) -> None:
    operator.model("m")
    info = operator.start()
    os.kill(info["pid"], signal.SIGSTOP)
    code, _, _ = operator.run("stop", "--force")
    assert code == 0
    assert gone(info["pid"])


def test_a_killed_daemon_leaves_no_worker_and_starts_again(operator: Operator) -> None:
    operator.model("m")
    operator.start()
    answer = operator.status()
    os.kill(answer["pid"], signal.SIGKILL)
    assert gone(answer["models"][0]["pid"])
    for command in ("status", "ps", "stop"):
        assert operator.run(command)[0] == 4
    assert operator.start()["pid"] != answer["pid"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_abandoned_start_leaves_nothing(operator: Operator, number: signal.Signals) -> None:
    operator.model("m", load_s=30)
    process = operator.begin(*operator.starting())
    operator.until_starting()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.rstrip().endswith("interrupted")
    assert operator.run("status")[0] == 4
    assert gone(operator.info()["pid"])


def test_whoever_waits_for_a_start_is_told_that_it_was_stopped(operator: Operator) -> None:
    operator.model("m", load_s=30)
    process = operator.begin(*operator.starting())
    operator.until_starting()
    assert operator.run("stop")[0] == 0
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the daemon was stopped while it started" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_foreground_drains_at_every_polite_signal(operator: Operator, number: signal.Signals) -> None:
    operator.model("m", tokens_per_s=50)
    ours = signal.signal(number, signal.SIG_DFL)  # nohup, around the tests, would have it ignored
    process = operator.begin(*operator.starting("--foreground"))
    signal.signal(number, ours)
    operator.until_starting()
    while not operator.info().get("ready"):
        time.sleep(0.05)
    lines = answer_of(operator.info(), 30)
    next(lines)
    process.send_signal(number)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_commands_need_no_management_port(operator: Operator) -> None:
    operator.model("m")
    operator.start("--management-port", "off", "--restrict-model-control")
    assert operator.status()["models"][0]["state"] == "ready"
    assert operator.run("unload", "m")[0] == 0
    assert operator.run("load", "m")[0] == 0
    assert (operator.state / "control.sock").stat().st_mode & 0o077 == 0
    assert operator.run("stop")[0] == 0
    assert not (operator.state / "control.sock").exists()


def test_model_control_tells_what_is_wrong_by_its_exit_code(operator: Operator) -> None:
    operator.model("m")
    operator.model("broken", fail_load="no such luck")
    info = operator.start("--model", "m")
    assert info["log"] == str(operator.state / "daemon.log")
    for words, code, text in (
        (("load", "nosuch"), 4, "the models are: broken, m"),
        (("unload", "nosuch"), 4, "the models are: broken, m"),
        (("unload", "m@7"), 4, "m@7"),
        (("load", "../m"), 2, "write NAME or NAME@VERSION"),
        (("load", "broken"), 2, "no such luck"),
    ):
        answer = operator.run(*words)
        assert (answer[0], text in answer[2]) == (code, True), answer
    assert (operator.state / "daemon.json").stat().st_mode & 0o077 == 0


def test_a_start_warns_of_what_it_does_not_serve(operator: Operator) -> None:
    code, _, err = operator.run(*operator.starting())
    assert (code, "the repository holds no models" in err) == (0, True)
    operator.run("stop")
    operator.model("m")
    operator.model("broken", fail_load="no such luck")
    code, _, err = operator.run(*operator.starting("--no-exit-on-error"))
    assert code == 0
    assert "broken version 1 is broken: no such luck" in err


@pytest.mark.parametrize("name", ["lock", "daemon.log", "daemon.json"])
def test_an_unusable_state_directory_is_one_sentence(operator: Operator, name: str) -> None:
    (operator.state / name).mkdir(parents=True)
    code, _, err = operator.run(*operator.starting())
    assert code == 2
    assert "cannot be written to: Is a directory" in err


def test_the_log_is_shown_whatever_it_holds(operator: Operator) -> None:
    operator.state.mkdir()
    log = b"".join(b"%d %s\n" % (number, b"x" * 5000) for number in range(40)) + b"\xff\xe4\xb8 end"
    (operator.state / "daemon.log").write_bytes(log)
    code, out, _ = operator.run("logs", "-n", "30")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:-1]] == [str(number) for number in range(11, 40)]
    assert out.endswith(" end")
    assert operator.run("logs", "-n", "0") == (0, "", "")
    assert operator.run("logs", "-n", "-1")[0] == 2
