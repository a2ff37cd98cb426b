"""``python -m benchmarks.adapters``: what a decode step costs whose sequences use LoRA adapters.

Eight sequences take one step after another, in turns without adapters, with one for all and with eight
different ones: bfloat16, rank 16, on every linear layer but the head. Printed are medians and ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.synthetic import BENCHMARK, make_folder
from builder.checkpoints.dtypes import narrowed
from builder.checkpoints.safetensors_header import TensorEntry, write_header
from builder.families import family_of_config
from builder.package import Order, package
from builder.progress import Progress
from contract.serving import read_config
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment

_SEQUENCES = 8
_RANK = 16
_CONTEXT = 128
_BLOCKS = _CONTEXT // 8


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    parser.add_argument("version", nargs="?", type=Path, help="a packaged version's folder  [default: made]")
    parser.add_argument("--dtypes", default="auto,int8,int4", help="how the weights are packed")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40, help="of each kind")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        version = chosen.version or _packaged(Path(folder))
        adapters = [_write_adapter(Path(folder) / f"adapter{i}", version, i) for i in range(_SEQUENCES)]
        for dtype in chosen.dtypes.split(","):
            options = RunnerOptions(
                num_blocks=_SEQUENCES * _BLOCKS, max_rows=_SEQUENCES, threads=chosen.threads, dtype=dtype
            )
            for line in _measure(version, adapters, options, chosen.steps):
                print(line, flush=True)
    return 0


def _packaged(folder: Path) -> Path:
    source = make_folder(BENCHMARK.name, BENCHMARK.to_config(), folder)
    order = Order(model=str(source), out=folder / "repository", link=True)
    return package(order, Progress(quiet=True)).path


def _write_adapter(folder: Path, version: Path, seed: int) -> Path:
    """A LoRA of random values, as PEFT writes it."""
    config = read_config(version)
    family = family_of_config(config, str(version))
    shapes, random = dict(family.expected_tensors(config)), np.random.default_rng(seed)
    entries, content = [], bytearray()
    for module, _ in family.linear_modules(config):
        if module == family.head:
            continue
        rows, columns = shapes[f"{module}.weight"]
        for half, shape in (("A", (_RANK, columns)), ("B", (rows, _RANK))):
            raw = narrowed(random.standard_normal(shape, np.float32) * np.float32(0.02), "BF16")
            name, start = f"base_model.model.{module}.lora_{half}.weight", len(content)
            content += raw
            entries.append(TensorEntry(name, "BF16", shape, start, len(content)))
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(write_header(entries, {}) + content)
    text = json.dumps({"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK})
    (folder / "adapter_config.json").write_text(text)
    return folder


def _measure(version: Path, folders: Sequence[Path], options: RunnerOptions, steps: int) -> Iterator[str]:
    runner = ModelRunner.load(version, options=options, progress=lambda fraction, what: None)
    loaded = [runner.load_adapter(folder) for folder in folders]
    handles = [handle for handle, _ in loaded]
    none = [0] * _SEQUENCES
    kinds: Mapping[str, list[int]] = {"none": none, "one": handles[:1] * _SEQUENCES, "eight": handles}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for step in range(steps):
        for kind, adapters in kinds.items():
            begin = time.perf_counter()
            runner.execute(_segments(runner, adapters, _CONTEXT - 1 - step % 32))
            times[kind].append(time.perf_counter() - begin)
    runner.close()
    medians = {kind: statistics.median(taken) * 1e3 for kind, taken in times.items()}
    yield f"{options.dtype}: an adapter takes {loaded[0][1] / 1e6:.1f} MB"
    for kind, median in medians.items():
        ratio = medians["none"] / median
        yield f"  {kind:6}{median:8.2f} ms a step, {100 * ratio:5.1f} % of the throughput without"


def _segments(runner: ModelRunner, adapters: Sequence[int], position: int) -> list[Segment]:
    base, scale = runner.rope_for(_CONTEXT)
    return [
        Segment([5 + i], position, range(i * _BLOCKS, (i + 1) * _BLOCKS), 0, base, scale, adapter)
        for i, adapter in enumerate(adapters)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
