"""OpenVINO GenAI with continuous batching.

python -m benchmarks.peers.run_openvino FOLDER PRECISION THREADS SLOTS
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from benchmarks.peers.answering import Clock, own_output, serve

_CACHE_GB = 1
_ROWS = 1024
"""Tokens of one step; its default of 256 is slower with long prompts."""


def main(folder: str, precision: str, threads: int, slots: int) -> None:
    out = own_output()
    numpy: Any = importlib.import_module("numpy")
    openvino: Any = importlib.import_module("openvino")
    genai: Any = importlib.import_module("openvino_genai")
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs = _CACHE_GB, slots
    scheduler.max_num_batched_tokens = _ROWS
    properties: dict[str, object] = {"INFERENCE_NUM_THREADS": threads}
    if precision != "auto":
        properties["INFERENCE_PRECISION_HINT"] = properties["KV_CACHE_PRECISION"] = precision
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)

    def generate(prompts: list[list[int]], max_tokens: int, clock: Clock) -> list[list[int]]:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = max_tokens
        config.do_sample, config.ignore_eos = False, True
        handles = [
            pipeline.add_request(number, openvino.Tensor(numpy.array([ids], numpy.int64)), config)
            for number, ids in enumerate(prompts)
        ]
        tokens: list[list[int]] = [[] for _ in prompts]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for number, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        clock.tick(number, len(output.generated_ids))
                        tokens[number] += output.generated_ids
        return tokens

    serve(out, generate)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
