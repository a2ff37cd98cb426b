"""The benchmark: its arguments, its model, its arithmetic. Nothing is installed, nothing large is made."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from benchmarks import options, plot, processes, table
from benchmarks.__main__ import prepare
from benchmarks.engines import Setting
from benchmarks.llamacpp import LlamaCpp
from benchmarks.load import Answer, EngineError, stream_all
from benchmarks.machine import Bounds, facts
from benchmarks.measure import Result
from benchmarks.mindport import MindPort
from benchmarks.prompts import Prompts, agreement
from benchmarks.report import Report, Run
from benchmarks.static_transformers import Transformers
from benchmarks.synthetic import (
    BENCHMARK,
    FIRST_WORD,
    TRIAL,
    Shape,
    make_folder,
    random_weights,
    tensor_shapes,
)
from builder.families import family_of_config

ROOT = Path(__file__).resolve().parent.parent
TINY = Shape(hidden=16, layers=2, heads=2, kv_heads=1, inner=24, vocab=400)


def setting_in(folder: Path, *arguments: str) -> Setting:
    return Setting(options.parse(["--cache", str(folder), *arguments]), TINY, folder / TINY.name)


@pytest.fixture(autouse=True)
def weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is packaged here, so that no file can be weighed."""
    for engine in (MindPort, LlamaCpp):
        monkeypatch.setattr(engine, "weight_bytes", lambda self: TINY.parameters * self.bits / 8)


def results_in(folder: Path) -> list[Result]:
    setting = setting_in(folder)
    ours = Result(
        MindPort(setting, "float32"), {"decode_per_s": [20.0, 30.0], "prefill_per_s": [200.0, 220.0]}
    )
    peer = Result(
        LlamaCpp(setting, "float32"), {"decode_per_s": [10.0, 20.0], "prefill_per_s": [100.0, 100.0]}
    )
    other = Result(LlamaCpp(setting, "int8"), {"decode_per_s": [40.0, 60.0]})
    ours.greedy, peer.greedy, other.greedy = [["a", "b"]], [["a", "b"]], [["a", "x"]]
    return [ours, peer, other]


# Arguments.


def test_the_short_form_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    short = options.parse([])
    assert (short.formats, short.streams, short.rounds) == (("float32", "int8"), (1, 8), 2)
    assert short.cache == tmp_path / "mindport" / "benchmarks"
    assert short.out == short.cache / "results"
    assert set(options.PEERS + options.NOT_WIRED) == set(short.peers)


def test_full_measures_everything() -> None:
    full = options.parse(["--full"])
    assert (full.formats, full.streams, full.rounds) == (options.FORMATS, (1, 8, 16), 3)


def test_what_is_given_goes_first(tmp_path: Path) -> None:
    given = options.parse(
        [
            "--full",
            "--peers",
            "llama.cpp",
            "--formats",
            "int4,float32",
            "--streams",
            "16,1",
            "--out",
            str(tmp_path),
        ]
    )
    assert (given.peers, given.formats, given.streams) == (("llama.cpp",), ("int4", "float32"), (1, 16))
    assert given.out == tmp_path
    assert options.parse(["--peers", "none"]).peers == ()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--peers", "ollama"],
        ["--formats", "float64"],
        ["--formats", ""],
        ["--streams", "0"],
        ["--streams", "many"],
        ["--rounds", "-1"],
        ["--cpus", "a"],
        ["--cpus", "99999"],
    ],
)
def test_wrong_arguments_end_the_program(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        options.parse(wrong)
    assert ending.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_script_is_a_bash_script() -> None:
    path = ROOT / "scripts" / "bench"
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    assert path.stat().st_mode & 0o111


# The model.


def test_the_model_has_the_sizes_that_the_documents_state() -> None:
    assert BENCHMARK.layer_parameters == 357_826_560
    assert BENCHMARK.parameters == 386_498_560
    assert BENCHMARK.head_dim == 64


@pytest.mark.parametrize("shape", [BENCHMARK, TRIAL, TINY], ids=["benchmark", "trial", "tiny"])
def test_the_builder_expects_the_tensors_that_are_made(shape: Shape) -> None:
    config = shape.to_config()
    family = family_of_config(config, "config.json")
    assert dict(family.expected_tensors(config)) == dict(tensor_shapes(shape))


def test_the_folder_is_made_once_and_complete(tmp_path: Path) -> None:
    folder = make_folder(TINY, tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert {name: values.shape for name, values in weights.items()} == dict(tensor_shapes(TINY))
    assert all(values.dtype == np.float32 for values in weights.values())
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "qwen2"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab
    assert tokenizer.decode(tokenizer.encode("bada kilo").ids) == "bada kilo"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_folder(TINY, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [folder]


def test_the_weights_are_the_same_everywhere() -> None:
    first, second = random_weights(TINY), random_weights(TINY)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    matrix = first["model.layers.0.mlp.down_proj.weight"]
    assert float(matrix.std()) == pytest.approx(24**-0.5, rel=0.2)


def test_no_answer_has_half_characters() -> None:
    table_of_ids = random_weights(TINY)["model.embed_tokens.weight"]
    assert float(abs(table_of_ids[:FIRST_WORD]).max()) < 0.01 * float(table_of_ids[FIRST_WORD:].std()) * 10


# Prompts.


def test_prompts_are_unique_and_the_same_for_every_engine() -> None:
    first, second = Prompts(800, 7), Prompts(800, 7)
    many = first.many(20, 32)
    assert many == second.many(20, 32)
    assert len({tuple(prompt[:16]) for prompt in many}) == 20
    assert all(300 <= token < 800 for prompt in many for token in prompt)


def test_agreement_counts_to_the_first_difference() -> None:
    assert agreement([["a", "b", "c"], ["d"]], [["a", "x", "c"], ["d"]]) == (2, 4)
    assert agreement([["a", "b"]], [["a"]]) == (1, 2)


# Arithmetic.


def test_an_answer_knows_its_times() -> None:
    answer = Answer(sent=1.0, arrivals=[1.5, 1.75, 2.5], tokens=3)
    assert answer.first_token_s == 0.5
    assert answer.decode_per_s == 2.0
    assert answer.gaps == [0.25, 0.75]
    with pytest.raises(EngineError, match="in one piece"):
        _ = Answer(arrivals=[1.0], tokens=3).decode_per_s


def test_shares_of_the_bounds(tmp_path: Path) -> None:
    results = results_in(tmp_path)
    table.add_shares(results, TINY, Bounds(30.0, 300.0, ""))
    own = TINY.parameters * 4
    assert results[0].median("read_share") == pytest.approx(100 * 25 * own / 30e9)
    assert results[0].median("fma_share") == pytest.approx(100 * 210 * 2 * TINY.layer_parameters / 300e9)
    assert "fma_share" not in results[2].samples


def test_the_table_has_medians_and_says_what_is_missing(tmp_path: Path) -> None:
    results = results_in(tmp_path)
    rows = table.table([*results, Result(Transformers(results[0].engine.setting, "float32"))], (1, 8))
    assert [row[0] for row in rows] == ["engine", "mindport float32", "llama.cpp f32", "llama.cpp q8_0"]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert rows[1][1] == "25.0"
    assert rows[3][rows[0].index("prefill 1024, tok/s")] == "–"
    assert [row[-1] for row in rows[1:]] == ["2 of 2", "reference", "1 of 2 (rounded weights)"]


def test_ratios_are_medians_of_the_rounds_and_of_equal_widths(tmp_path: Path) -> None:
    rows = table.ratios(results_in(tmp_path), (1,))
    assert rows == [["MindPort over", "decode", "prefill 1024"], ["llama.cpp f32 (float32)", "1.75", "2.10"]]


def test_tables_as_text_and_markdown() -> None:
    rows = [["engine", "decode"], ["a", "1.0"]]
    assert table.markdown(rows) == "| engine | decode |\n| --- | --: |\n| a | 1.0 |\n"
    assert table.text(rows) == "engine    a\ndecode  1.0\n"


def test_a_bound_is_the_best_that_was_seen() -> None:
    assert Bounds(30, 100, "x").best_of(Bounds(20, 120, "x")) == Bounds(30, 120, "x")


def test_the_report_is_written_in_four_forms(tmp_path: Path) -> None:
    results = results_in(tmp_path)
    run = Run("bash scripts/bench", facts((0,)), (1,))
    report = Report(run, TINY, Bounds(1, 2, "C"), 2, results, {"vllm": "<reason>"})
    report.write(tmp_path / "out")
    data = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert data["results"][0]["medians"]["decode_per_s"] == 25.0
    assert data["missing"] == {"vllm": "<reason>"}
    for name in ("results.txt", "results.md"):
        assert "vllm: <reason>" in (tmp_path / "out" / name).read_text("utf-8")
    picture = ET.fromstring((tmp_path / "out" / "results.svg").read_text("utf-8"))  # noqa: S314  # ours
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 3 + 2


def test_bars_are_to_scale() -> None:
    drawn = plot.svg([("a & b", [("x", 2.0, True), ("y", 1.0, False)])])
    assert "a &amp; b" in drawn
    widths = [float(rect.attrib["width"]) for rect in ET.fromstring(drawn) if "fill" in rect.attrib]  # noqa: S314
    assert widths[1] == 2 * widths[2]


# Engines.


def lives(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text("utf-8")
    except OSError:
        return False


def test_a_peer_that_cannot_be_had_is_listed_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MindPort, "prepare", lambda self: None)
    setting = setting_in(tmp_path, "--no-install", "--formats", "float32,int8")
    results, missing = prepare(setting)
    assert [result.engine.name for result in results] == ["mindport float32", "mindport int8"]
    assert missing["llama.cpp f32"] == "not installed, and --no-install was given"
    assert missing["transformers int8"] == "transformers is not measured with int8"
    assert missing["vllm"] == "not wired into this benchmark yet"


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
