"""Visits and settings that several tests of the benchmark start from."""

from __future__ import annotations

from pathlib import Path

from benchmarks import options
from benchmarks.engines import Setting
from benchmarks.subject import Subject, Visit
from benchmarks.synthetic import Shape

ROOT = Path(__file__).resolve().parents[2]
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
