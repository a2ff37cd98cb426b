"""``python -m benchmarks.convert_scale --model telechat2_115b``: convert a checkpoint of full size.

The source has the sizes of the real one and is sparse: it takes no room, and reads as zeros. The result is
counted and hashed, and not kept. Printed are the time, the rate, and the converting process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from builder.checkpoints.safetensors_header import DTYPE_BYTES, TensorEntry, write_header
from builder.families import family_named
from builder.recipe import find_recipe

_SHARD_BYTES = 5 * 10**9


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert_scale", description=__doc__)
    parser.add_argument("--model", default="telechat2_115b")
    parser.add_argument("--stored", choices=sorted(DTYPE_BYTES), default="F32", help="dtype of the source")
    parser.add_argument("options", nargs="*", help="of builder convert, after --")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        size = write_source(Path(folder), chosen.model, chosen.stored)
        command = [sys.executable, "-m", "builder.cli", "convert", folder, f"{folder}/result", "--discard"]
        begin = time.monotonic()
        ended = subprocess.run(
            [*command, "--json", "--model", chosen.model, *chosen.options], check=True, stdout=subprocess.PIPE
        )
        took_s = time.monotonic() - begin
    result = json.loads(ended.stdout)
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"read      {size / 1e9:.1f} GB of {chosen.model}, sparse")
    print(
        f"made      {result['tensors']} tensors, {result['bytes'] / 1e9:.1f} GB, {len(result['files'])} files"
    )
    print(f"took      {took_s:.0f} s, {size / took_s / 1e9:.2f} GB/s")
    print(f"resident  {peak_mib:.0f} MiB at most")
    return 0


def write_source(folder: Path, model: str, dtype: str) -> int:
    """Sparse shards under HuggingFace's names; their bytes."""
    recipe = find_recipe(model).recipe
    family = family_named(recipe.family)
    shards: list[list[TensorEntry]] = [[]]
    position = total = 0
    for name, shape in family.expected_tensors(recipe.architecture):
        length = math.prod(shape) * DTYPE_BYTES[dtype]
        if shards[-1] and position + length > _SHARD_BYTES:
            shards.append([])
            position = 0
        shards[-1].append(TensorEntry(name, dtype, shape, position, position + length))
        position += length
    for number, tensors in enumerate(shards, 1):
        header = write_header(tensors, {"format": "pt"})
        with (folder / f"model-{number:05}-of-{len(shards):05}.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + tensors[-1].end)
            total += file.tell() + tensors[-1].end
    return total


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
