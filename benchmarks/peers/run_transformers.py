"""transformers with a static batch, one JSON object a line: python run_transformers.py FOLDER DTYPE THREADS.

Reads {"prompts": [[ids]], "max_tokens": n}; writes {"tokens": [[ids]], "times": [s]}, one time a step.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any


class Clock:
    """A logits processor that changes nothing and takes the time of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, _ids: Any, scores: Any) -> Any:
        self.times.append(time.perf_counter())
        return scores


def main(folder: str, dtype: str, threads: int) -> None:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(threads)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        clock, begin = Clock(), time.perf_counter()
        ids = torch.tensor(task["prompts"])
        with torch.inference_mode():
            out = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=task["max_tokens"],
                max_new_tokens=task["max_tokens"],
                pad_token_id=0,
                eos_token_id=None,
                logits_processor=transformers.LogitsProcessorList([clock]),
            )
        answer = {
            "tokens": out[:, ids.shape[1] :].tolist(),
            "times": [moment - begin for moment in clock.times],
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
