"""The benchmark's arithmetic: times, shares, ratios and goals."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import goals, table
from benchmarks.goals import Goal
from benchmarks.load import Answer, EngineError
from benchmarks.machine import Bounds
from benchmarks.phases import percentile
from benchmarks.quality import Text, held_out, shares
from benchmarks.rounds import contenders
from benchmarks.subject import Result, Visit, best_peer, ratio, results_of
from benchmarks.synthetic import (
    BENCHMARK,
    make_folder,
)
from benchmarks.variants import PROMPT, Arithmetic, Variant, variants
from tests.benchmarks.cases import BOUNDS, OURS, PEER, TINY, peers_visited, setting_in, subject


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
    for number, variant, factor in (
        (0, base, 2.0),
        (0, long, 2.2),
        (1, base, 3.0),
        (1, long, 3.9),
        (2, long, 9),
    ):
        seconds = Arithmetic.of(variant.config).prefill(variant.prompt).seconds(bounds)
        alone = subject("engine alone", "float32", 32, variant.name)
        visits.append(Visit("variants", number, alone, {"prefill_s": factor * seconds, **BOUNDS}))
    found = found_goals(visits)
    assert goal(found, "prefill, 8192 tokens").value == pytest.approx((1.1 + 1.3) / 2)
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
