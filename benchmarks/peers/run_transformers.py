"""transformers with a static batch: python -m benchmarks.peers.run_transformers FOLDER DTYPE THREADS."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from benchmarks.peers.answering import Clock, own_output, serve


class Ticks:
    """A logits processor that changes nothing and takes the time of each step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, _ids: Any, scores: Any) -> Any:
        self._clock.tick_all()
        return scores


def main(folder: str, dtype: str, threads: int) -> None:
    out = own_output()
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(threads)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def generate(prompts: list[list[int]], max_tokens: int, clock: Clock) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            whole = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=max_tokens,
                max_new_tokens=max_tokens,
                pad_token_id=0,
                eos_token_id=None,
                logits_processor=transformers.LogitsProcessorList([Ticks(clock)]),
            )
        tokens: list[list[int]] = whole[:, ids.shape[1] :].tolist()
        return tokens

    serve(out, generate)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
