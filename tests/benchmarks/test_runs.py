"""The benchmark's runs: engines that fail, processes that end, streams that are timed."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks import options, processes, visits
from benchmarks.__main__ import prepare
from benchmarks.llamacpp import LlamaCpp
from benchmarks.load import Answer, EngineError, Streams, stream_all
from benchmarks.machine import Bounds
from benchmarks.mindport import EngineAlone, MindPort
from benchmarks.subject import Visit
from benchmarks.visits import Diary, Visitor
from tests.benchmarks.cases import BOUNDS, OURS, PEER, setting_in


class Scripted(MindPort):
    """Needs no process; one phase fails."""

    is_stalled = has_footprint = has_prefix_cache = False
    runs = True

    @property
    def is_running(self) -> bool:
        return self.runs

    def weight_bytes(self) -> float:
        return 1.0

    def source(self) -> Path:
        return self.setting.options.cache

    def start(self) -> None:
        pass

    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        return ["a"]

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        if max_tokens == 1:
            raise EngineError("no prefill")
        return [Answer(0.0, [float(token) for token in range(1, max_tokens + 1)], max_tokens)] * len(prompts)


@pytest.mark.parametrize("runs", [True, False], ids=["it goes on", "it ended"])
def test_a_phase_that_fails_costs_its_own_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    monkeypatch.setattr(visits, "measure_bounds", lambda options: Bounds(**BOUNDS))
    monkeypatch.setattr(visits, "wait_for_quiet", lambda cpus: None)
    monkeypatch.setattr(Scripted, "runs", runs)
    diary = Diary.open(tmp_path / "visits.jsonl", resume=False)
    Visitor(setting_in(tmp_path), diary, lambda text: None).round(
        Scripted(setting_in(tmp_path), "float32"), 0
    )
    (visit,) = diary.visits
    assert visit.problem == "prefill of 1024: no prefill"
    assert visit.values["decode_per_s"] == 1.0
    assert visit.values["read_gb_s"] == 30.0
    assert ("output_per_s_8" in visit.values) is runs
    assert visit.greedy == [["a"]] * 4


def test_files_are_read_before_a_start_is_timed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights").write_bytes(bytes(5 << 20))
    visits.fill_page_cache(tmp_path)
    visits.fill_page_cache(tmp_path / "folder" / "weights")
    with pytest.raises(EngineError, match="nowhere cannot be read"):
        visits.fill_page_cache(tmp_path / "nowhere")


def test_a_run_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "visits.jsonl"
    diary = Diary.open(path, resume=False)
    diary.add(Visit("peers", 0, OURS, {"x": 1.0}))
    diary.add(Visit("peers", 0, PEER, problem="it ended"))
    again = Diary.open(path, resume=True)
    assert again.visits == diary.visits
    assert again.has("peers", OURS.name, 0)
    assert not again.has("peers", PEER.name, 0)
    assert not again.has("peers", OURS.name, 1)
    again.add(Visit("peers", 0, PEER, {"x": 2.0}))
    assert [visit.values for visit in again.visits] == [{"x": 1.0}, {"x": 2.0}]
    again.forget(("peers",))
    assert Diary.open(path, resume=True).visits == []
    path.write_text("nonsense\n", "utf-8")
    with pytest.raises(EngineError, match="--resume"):
        Diary.open(path, resume=True)


def lives(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text("utf-8")
    except OSError:
        return False


def test_a_peer_that_cannot_be_had_is_listed_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MindPort, "prepare", lambda self: None)
    setting = setting_in(tmp_path, "--full", "--no-install", "--formats", "float32,int8")
    said: list[str] = []
    visitor = Visitor(setting, Diary.open(tmp_path / "visits.jsonl", resume=False), said.append)
    assert [engine.name for engine in prepare(visitor)] == ["mindport float32", "mindport int8"]
    problems = {visit.subject.name: visit.problem for visit in visitor.diary.visits}
    for peer in options.PEERS:
        assert problems[f"{peer} float32"] == "not installed, and --no-install was given"
    assert problems["transformers int8"] == "transformers is not measured with int8"


def test_engines_are_held_to_an_instruction_set(tmp_path: Path) -> None:
    given = ("--isa", "avx2", "--llama-server", "/somewhere/llama-server")
    setting = setting_in(tmp_path, *given)
    assert MindPort(setting, "float32").environment()["MINDPORT_KERNELS_ISA"] == "avx2"
    assert EngineAlone(setting, "float32").environment()["MINDPORT_KERNELS_ISA"] == "avx2"
    assert "llama-server" not in " ".join(LlamaCpp(setting, "float32").command())
    assert "/somewhere/llama-server" in LlamaCpp(setting_in(tmp_path, *given[2:]), "float32").command()


def test_processes_are_found_and_stopped(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    cpu = options.parse([]).cpus[:1]
    process = processes.Process([sys.executable, "-c", code], cpu, tmp_path / "x.log")
    leader = process._process.pid
    process.wait_until(lambda: len(processes.family_of(leader)) == 2)
    family = processes.family_of(leader)
    assert process.peak_bytes() > 0
    process.stop()
    limit = time.monotonic() + 10
    while any(map(lives, family)) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(map(lives, family))


def test_processor_time_is_seen(tmp_path: Path) -> None:
    cpus = options.parse([]).cpus[:1]
    before = processes.busy_seconds(cpus)
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    process = processes.Process([sys.executable, "-c", code], cpus, tmp_path / "x.log")
    process.wait_until(lambda: "done" in (tmp_path / "x.log").read_text("utf-8"))
    assert process.cpu_seconds() >= 0.25
    assert processes.busy_seconds(cpus) - before >= 0.25
    process.stop()
    assert process.cpu_seconds() == 0


def test_a_process_that_ends_at_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model')"]
    process = processes.Process(command, options.parse([]).cpus, tmp_path / "x.log")
    with pytest.raises(EngineError, match="it ended at start: no model"):
        process.wait_until(lambda: False)
    process.stop()


def test_a_server_that_is_not_there_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="refused"):
        stream_all(processes.free_port(), [{"max_tokens": 1}])


class Typist(BaseHTTPRequestHandler):
    """An OpenAI endpoint that writes as many tokens as are asked for."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(body["max_tokens"]):
                self._write({"choices": [{"text": "a"}]})
            self._write({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        except OSError:
            self.server.hung_up.append(body["max_tokens"])  # type: ignore[attr-defined]

    def log_message(self, *words: object) -> None:
        pass

    def _write(self, chunk: dict[str, object]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


@pytest.fixture
def typist() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Typist)
    server.hung_up = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_streams_are_timed_token_by_token(typist: ThreadingHTTPServer) -> None:
    answers = stream_all(typist.server_port, [{"max_tokens": 5}, {"max_tokens": 7}])
    assert [answer.tokens for answer in answers] == [5, 7]
    assert [len(answer.arrivals) for answer in answers] == [5, 7]


def test_background_streams_are_hung_up_on(typist: ThreadingHTTPServer) -> None:
    streams = Streams(typist.server_port, [{"max_tokens": 10_000_000}] * 3)
    streams.wait_for(20)
    begin, end = streams.answers[0].arrivals[0], streams.answers[0].arrivals[10]
    streams.close()
    assert len(streams.gaps_between(begin, end)) >= 10
    limit = time.monotonic() + 10
    while len(typist.hung_up) < 3 and time.monotonic() < limit:  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert typist.hung_up == [10_000_000] * 3  # type: ignore[attr-defined]


def test_a_background_stream_that_ends_is_reported(typist: ThreadingHTTPServer) -> None:
    streams = Streams(typist.server_port, [{"max_tokens": 3}])
    streams.wait_for(3)
    streams._threads[0].join()
    with pytest.raises(EngineError, match="ended too early"):
        streams.close()
