"""What the benchmark writes: tables, pictures, documents."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import plot, report, table
from benchmarks.__main__ import repeatable
from benchmarks.load import EngineError
from benchmarks.machine import Bounds, facts
from benchmarks.report import Report, Run
from benchmarks.subject import Visit
from benchmarks.variants import variants
from tests.benchmarks.cases import OURS, ROOT, TINY, peers_visited, setting_in, subject


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
