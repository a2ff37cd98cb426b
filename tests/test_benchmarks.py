"""The benchmark: its arguments, its model, its arithmetic. Nothing is installed, nothing large is made."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from benchmarks import goals, options, plot, processes, report, table, visits
from benchmarks.__main__ import ENGINES, prepare, repeatable
from benchmarks.engines import Setting
from benchmarks.goals import Goal
from benchmarks.llamacpp import LlamaCpp
from benchmarks.load import Answer, EngineError, Streams, stream_all
from benchmarks.machine import Bounds, facts
from benchmarks.mindport import EngineAlone, MindPort
from benchmarks.phases import percentile
from benchmarks.prompts import Prompts, agreement
from benchmarks.quality import Text, held_out, shares
from benchmarks.report import Report, Run
from benchmarks.rounds import contenders
from benchmarks.subject import Result, Subject, Visit, best_peer, ratio, results_of
from benchmarks.synthetic import (
    BENCHMARK,
    FIRST_WORD,
    TRIAL,
    Shape,
    make_folder,
    random_weights,
    tensor_shapes,
)
from benchmarks.variants import PROMPT, Arithmetic, Variant, variants
from benchmarks.visits import Diary, Visitor

ROOT = Path(__file__).resolve().parent.parent
TINY = Shape(hidden=16, layers=2, heads=2, kv_heads=1, inner=24, vocab=400)
BOUNDS = {"read_gb_s": 30.0, "fma_gflop_s": 300.0, "int8_gb_s": 30.0}


def setting_in(folder: Path, *arguments: str) -> Setting:
    return Setting(options.parse(["--cache", str(folder), *arguments]), TINY, folder / TINY.name)


def subject(engine: str, weight_format: str, bits: float, variant: str = "") -> Subject:
    return Subject(engine, weight_format, bits, TINY.parameters * bits / 8, "1.0", variant)


OURS, PEER = subject("mindport", "float32", 32), subject("llama.cpp", "f32", 32)
OTHER = subject("llama.cpp", "q8_0", 8.5)


def peers_visited() -> list[Visit]:
    """Two rounds of MindPort, llama.cpp in the same and in another width."""
    made = []
    for number, (mine, theirs, others) in enumerate([(20.0, 10.0, 40.0), (30.0, 20.0, 60.0)]):
        values = {
            "decode_per_s": mine,
            "prefill_per_s": 200.0 + 20 * number,
            "output_per_s_8": 50.0,
            **BOUNDS,
        }
        made.append(Visit("peers", number, OURS, values, [["a", "b"]]))
        values = {"decode_per_s": theirs, "prefill_per_s": 100.0, "output_per_s_8": 25.0, **BOUNDS}
        made.append(Visit("peers", number, PEER, values, [["a", "b"]]))
        made.append(Visit("peers", number, OTHER, {"decode_per_s": others}, [["a", "x"]]))
    return made


# Arguments.


def test_the_short_form_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    short = options.parse([])
    assert (short.formats, short.streams, short.minutes) == (("float32", "int8", "int4"), (1, 8), 10)
    assert short.peers == ("llama.cpp", "ctranslate2")
    assert "variants" not in short.parts
    assert short.cache == tmp_path / "mindport" / "benchmarks"
    assert short.out == short.cache / "results"


def test_full_measures_everything() -> None:
    full = options.parse(["--full"])
    assert (full.formats, full.streams, full.parts) == (options.FORMATS, (1, 8, 16), options.PARTS)
    assert full.peers == options.PEERS
    assert set(ENGINES) == {"mindport", *options.PEERS}


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


def test_a_part_that_is_named_is_measured_again() -> None:
    assert options.parse(["--full", "--resume"]).again == ()
    assert options.parse(["--resume", "--only", "quality"]).again == ("quality",)


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
        ["--only", "speed"],
        ["--isa", "sse9"],
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


def test_the_sizes_are_those_of_the_tensors() -> None:
    for shape in (BENCHMARK, TRIAL, TINY):
        matrices = [size for size in tensor_shapes(shape.to_config()).values() if len(size) == 2]
        assert sum(rows * columns for rows, columns in matrices) == shape.parameters


def test_the_folder_is_made_once_and_complete(tmp_path: Path) -> None:
    folder = make_folder(TINY.name, TINY.to_config(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert {name: values.shape for name, values in weights.items()} == tensor_shapes(TINY.to_config())
    assert all(values.dtype == np.float32 for values in weights.values())
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "qwen2"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab
    assert tokenizer.decode(tokenizer.encode("bada kilo").ids) == "bada kilo"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_folder(TINY.name, TINY.to_config(), tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [folder]


def test_another_configuration_of_the_same_name_is_made_again(tmp_path: Path) -> None:
    make_folder("model", TINY.to_config(), tmp_path)
    changed = {**TINY.to_config(), "num_hidden_layers": 1}
    folder = make_folder("model", changed, tmp_path)
    assert set(load_file(folder / "model.safetensors")) == set(tensor_shapes(changed))


def test_the_weights_are_the_same_everywhere() -> None:
    first, second = random_weights(TINY.to_config()), random_weights(TINY.to_config())
    assert all(np.array_equal(first[name], second[name]) for name in first)
    matrix = first["model.layers.0.mlp.down_proj.weight"]
    assert float(matrix.std()) == pytest.approx(24**-0.5, rel=0.2)


def test_no_answer_has_half_characters() -> None:
    table_of_ids = random_weights(TINY.to_config())["model.embed_tokens.weight"]
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


def test_shares_are_of_the_bounds_of_the_same_visit() -> None:
    ours, _, other = results_of(peers_visited(), "peers")
    assert goals.read_shares(ours) == [
        pytest.approx(100 * rate * OURS.weight_bytes / 30e9) for rate in (20, 30)
    ]
    wanted = [100 * rate * goals.token_flop(TINY) / 300e9 for rate in (200, 220)]
    assert goals.fma_shares(ours, TINY) == pytest.approx(wanted)
    assert goals.read_shares(other) == []


def test_what_the_bounds_allow_of_several_streams() -> None:
    result = results_of(peers_visited(), "peers")[0]
    alone = goals.output_bound(result, TINY, 1)
    most = 30e9 / OURS.weight_bytes  # weights alone, once a token
    assert alone is not None
    assert 0.9 * most < alone < most * 128 / 127
    many = goals.output_bound(result, TINY, 10_000)
    work = Arithmetic.of(TINY.to_config())
    needed = work.prefill(128).flop + 127 * work.decode(192).flop
    assert many == pytest.approx(128 * 300e9 / needed)
    assert goals.output_bound(results_of(peers_visited(), "peers")[2], TINY, 8) is None


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(value) for value in range(1, 201)]
    assert percentile(values, 99) == 198
    assert percentile([3.0], 99) == 3.0
    with pytest.raises(EngineError):
        percentile([], 50)


def test_the_table_has_medians_and_marks_what_was_disturbed() -> None:
    visits = peers_visited()
    visits[1].values["others_share"] = 30.0
    rows = table.table(results_of([*visits, Visit("peers", 0, subject("x", "y", 4))], "peers"), TINY, (1, 8))
    assert [row[0] for row in rows] == ["engine", "mindport float32", "llama.cpp f32*", "llama.cpp q8_0"]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert rows[1][1] == "25.0"
    assert rows[3][rows[0].index("prefill 1024, tok/s")] == "–"
    assert [row[-1] for row in rows[1:]] == ["2 of 2", "reference", "1 of 2 (rounded weights)"]


def test_ratios_are_medians_of_the_rounds_and_of_equal_widths() -> None:
    rows = table.ratios(results_of(peers_visited(), "peers"), (1,))
    assert rows == [["MindPort over", "decode", "prefill 1024"], ["llama.cpp f32 (float32)", "1.75", "2.10"]]


def test_a_ratio_needs_the_same_rounds() -> None:
    ours, peer = Result(OURS, [Visit("peers", 0, OURS, {"x": 4.0})]), Result(PEER)
    assert ratio(ours, peer, "x") is None
    peer.visits.append(Visit("peers", 1, PEER, {"x": 2.0}))
    assert ratio(ours, peer, "x") is None
    peer.visits.append(Visit("peers", 0, PEER, {"x": 8.0}))
    assert ratio(ours, peer, "x") == 0.5


def test_the_best_peer_has_the_same_width() -> None:
    ours, peer, other = results_of(peers_visited(), "peers")
    assert best_peer([ours, peer, other], ours, "decode_per_s") is peer
    assert best_peer([ours, other], ours, "decode_per_s") is None


def test_later_rounds_are_for_those_who_decide() -> None:
    visits = peers_visited()
    slow, broken = subject("slow", "float32", 32), subject("broken", "float32", 32)
    visits.append(Visit("peers", 0, slow, {"decode_per_s": 1.0}))
    visits.append(Visit("peers", 0, broken, {"decode_per_s": 99.0}, problem="it ended"))
    assert contenders(results_of(visits, "peers")) == {"mindport float32", "llama.cpp f32", "llama.cpp q8_0"}


# Goals.


def goal(found: list[Goal], start: str) -> Goal:
    return next(one for one in found if one.figure.startswith(start))


def found_goals(visits: list[Visit]) -> list[Goal]:
    setting = setting_in(Path("/nowhere"), "--small")
    return goals.goals(visits, TINY, (1, 8), variants(setting))


def test_a_goal_is_met_missed_or_not_measured() -> None:
    assert [Goal("f", 2, " ×", value).is_met for value in (2.0, 1.9, None)] == [True, False, None]
    assert [Goal("f", 2, " ms", value, at_most=True).is_met for value in (2.0, 2.1)] == [True, False]
    assert Goal("f", 1.2, " ×", 1.5, note="llama.cpp f32").cells == [
        "f",
        "≥ 1.2 ×",
        "1.50 × (llama.cpp f32)",
        "yes",
    ]
    assert Goal("f", 5, " s").cells == ["f", "≥ 5 s", "–", "not measured"]


def test_goals_are_computed_from_the_rounds() -> None:
    found = found_goals(peers_visited())
    assert goal(found, "decode, one stream, float32, over llama.cpp").value == 1.75
    assert goal(found, "prefill 1024, float32, over the best peer").cells[2] == "2.10 × (llama.cpp f32)"
    assert goal(found, "output, 8 streams, float32").is_met
    assert goal(found, "first token of a repeated").is_met is None
    assert not goal(found, "decode, one stream, float32, of the read bound").is_met


def test_other_shapes_are_judged_by_the_efficiency_of_the_base() -> None:
    shapes = variants(setting_in(Path("/nowhere"), "--small"))
    base, long = shapes[0], shapes[1]
    bounds = Bounds(**BOUNDS)
    visits = []
    for variant, factor in ((base, 2.0), (long, 2.2)):
        seconds = Arithmetic.of(variant.config).prefill(variant.prompt).seconds(bounds)
        alone = subject("engine alone", "float32", 32, variant.name)
        visits.append(Visit("variants", 0, alone, {"prefill_s": factor * seconds, **BOUNDS}))
    found = found_goals(visits)
    assert goal(found, "prefill, 8192 tokens").value == pytest.approx(1.1)
    assert goal(found, "prefill, ALiBi").value is None


def test_work_of_the_base_model() -> None:
    work = Arithmetic.of(BENCHMARK.to_config())
    assert (work.layer_weights, work.head_weights) == (BENCHMARK.layer_parameters, 32000 * 896)
    assert work.decode(0).read_bytes == 4 * BENCHMARK.parameters
    assert work.prefill(1).flop == pytest.approx(work.decode(1).flop, rel=1e-4)
    layer, kv = BENCHMARK.layer_parameters // 24, 2 * 128 * 896
    last = 2 * (layer - kv + 32000 * 896)
    matrices = 2 * (23 * layer + kv) * PROMPT + last
    assert work.prefill(PROMPT).flop - matrices == 4 * 896 * (23 * PROMPT**2 / 2 + PROMPT)


def test_a_token_meets_its_experts_only() -> None:
    experts = variants(setting_in(Path("/nowhere")))[-1]
    work = Arithmetic.of(experts.config)
    assert experts.name == "experts 2 of 8"
    assert work.layer_weights < work.stored_weights
    assert [variant.name for variant in variants(setting_in(Path("/nowhere")))][2:6] == [
        "heads 1:1",
        "heads 1:4",
        "heads 1:16",
        "ALiBi",
    ]
    assert isinstance(experts, Variant)


def test_threads_quality_daemon_and_memory_have_goals() -> None:
    one, two = (subject("engine alone", "int8", 8.25, name) for name in ("1 thread", "2 threads"))
    demo = subject("engine alone", "int8", 8.25, "demo model")
    ours, idle = subject("mindport", "int8", 8.25), subject("mindport", "float32", 32, "idle")
    memory = {"worker_mb": 900.0, "asked_mb": 500.0, "cold_start_s": 4.0}
    found = found_goals(
        [
            Visit("threads", 0, one, {"prefill_per_s": 100.0}),
            Visit("threads", 0, two, {"prefill_per_s": 190.0}),
            Visit("quality", 0, demo, {"same_share": 98.0, "same_anywhere_share": 90.0, "tokens": 10.0}),
            Visit("daemon", 0, two, {"output_per_s": 100.0, "one_token_ms": 10.0}),
            Visit("daemon", 0, ours, {"output_per_s": 96.0, "one_token_ms": 12.0}),
            Visit("peers", 0, ours, memory),
            Visit("daemon", 0, idle, {"worker_mb": 310.0, "asked_mb": 10.0}),
        ]
    )
    assert goal(found, "prefill 1024, int8, two threads over one").value == pytest.approx(1.9)
    assert not goal(found, "next token as float32's").is_met
    assert goal(found, "output through the daemon").value == pytest.approx(96)
    assert goal(found, "a one-token request").value == pytest.approx(2)
    assert goal(found, "worker's memory beyond").value == pytest.approx(100)
    assert goal(found, "ready after start").is_met


def test_shares_count_answers_and_everything() -> None:
    texts = [Text([5, 6, 7, 8], [False, False, True, True])]
    values = shares(texts, [[6, 7, 9]], [[1, 7, 9]])
    assert values == {
        "same_share": 100.0,
        "same_anywhere_share": pytest.approx(200 / 3),
        "right_share": 50.0,
        "tokens": 2.0,
    }


def test_held_out_answers_are_what_the_model_learned(tmp_path: Path) -> None:
    make_folder("model", TINY.to_config(), tmp_path)
    texts = held_out(tmp_path / "model" / "tokenizer.json", 5)
    assert len(texts) == 5
    assert all(any(text.learned) and not all(text.learned) for text in texts)
    assert all(len(text.ids) == len(text.learned) for text in texts)


def test_tables_as_text_and_markdown() -> None:
    rows = [["engine", "decode"], ["a", "1.0"]]
    assert table.markdown(rows) == "| engine | decode |\n| --- | --: |\n| a | 1.0 |\n"
    assert table.text(rows) == "engine  decode\na          1.0\n"
    assert table.text(table.turned(rows)) == "engine    a\ndecode  1.0\n"


def test_a_bound_is_the_best_that_was_seen() -> None:
    assert Bounds(30, 100, 20).best_of(Bounds(20, 120, 25)) == Bounds(30, 120, 25)
    assert Bounds.from_values(Bounds(1, 2, 3).to_values()) == Bounds(1, 2, 3)
    assert Bounds.from_values({"read_gb_s": 1.0}) is None


def test_a_command_names_no_place_of_this_machine() -> None:
    given = [
        "--full",
        "--cache",
        "/a",
        "--out=/b",
        "--llama-server",
        "/c/llama-server",
        "--resume",
        "--cpus",
        "2,3",
    ]
    wanted = "bash scripts/bench --full --llama-server build/bin/llama-server --cpus 2,3"
    assert repeatable(given) == wanted


def report_of(visits: list[Visit]) -> Report:
    run = Run("bash scripts/bench", facts((0,)), (1, 8))
    return Report(run, TINY, variants(setting_in(Path("/nowhere"), "--small")), visits)


def test_the_report_is_written_in_four_forms(tmp_path: Path) -> None:
    lacking = Visit("peers", 0, subject("vllm", "float32", 32), problem="start: <reason>")
    report_of([*peers_visited(), lacking]).write(tmp_path / "out")
    data = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert [Visit.from_data(visit) for visit in data["visits"]] == [*peers_visited(), lacking]
    assert {one["met"] for one in data["goals"]} == {True, False, None}
    for name in ("results.txt", "results.md"):
        assert "vllm float32 (peers): start: <reason>" in (tmp_path / "out" / name).read_text("utf-8")
    picture = ET.fromstring((tmp_path / "out" / "results.svg").read_text("utf-8"))  # noqa: S314  # ours
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 3 + 2 + 2
    assert len(picture.findall("{http://www.w3.org/2000/svg}path")) == 2 + 2


def test_the_report_says_who_was_disturbed() -> None:
    disturbed = Visit("threads", 0, OURS, {"prefill_per_s": 1.0, "others_share": 50.0})
    said = "mindport float32 (threads): others took 50 % of its CPUs"
    assert f"disturbed:\n  {said}\n" in report_of([disturbed]).text()
    assert f"- disturbed: {said}\n" in report_of([disturbed]).markdown()


def test_documents_get_the_tables_between_their_marks(tmp_path: Path) -> None:
    for language in ("en", "zh"):
        page = tmp_path / language / "benchmarks.md"
        page.parent.mkdir()
        page.write_text((ROOT / "docs" / language / "benchmarks.md").read_text("utf-8"), "utf-8")
    (tmp_path / "pictures").mkdir()
    report_of(peers_visited()).write_documents(tmp_path, tmp_path)
    once = (tmp_path / "en" / "benchmarks.md").read_text("utf-8")
    assert "| mindport float32 | 25.0 |" in once
    report_of(peers_visited()).write_documents(tmp_path, tmp_path)
    assert (tmp_path / "en" / "benchmarks.md").read_text("utf-8") == once
    assert ET.fromstring((tmp_path / "pictures" / "benchmarks.svg").read_text("utf-8")).tag.endswith("svg")  # noqa: S314
    with pytest.raises(EngineError, match="marks"):
        report.between_marks("no marks", "x")


def test_bars_are_to_scale() -> None:
    drawn = plot.svg([plot.Panel("a & b", [plot.Bar("x", 2.0, True), plot.Bar("y", 1.0)])])
    assert "a &amp; b" in drawn
    widths = [float(rect.attrib["width"]) for rect in ET.fromstring(drawn) if "fill" in rect.attrib]  # noqa: S314
    assert widths[1] == 2 * widths[2]


# Visits.


class Scripted(MindPort):
    """Needs no process; one phase fails."""

    is_stalled = has_footprint = has_prefix_cache = False
    runs = True

    @property
    def is_running(self) -> bool:
        return self.runs

    def weight_bytes(self) -> float:
        return 1.0

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
