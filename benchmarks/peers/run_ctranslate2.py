"""CTranslate2 with a static batch: python -m benchmarks.peers.run_ctranslate2 FOLDER TYPE THREADS."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.answering import Clock, own_output, serve


def main(folder: str, compute_type: str, threads: int) -> None:
    out = own_output()
    ctranslate2: Any = importlib.import_module("ctranslate2")
    words: list[str] = json.loads((Path(folder) / "vocabulary.json").read_text("utf-8"))
    generator = ctranslate2.Generator(
        folder, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
    )

    def generate(prompts: list[list[int]], max_tokens: int, clock: Clock) -> list[list[int]]:
        def step(result: Any) -> bool:
            clock.tick(result.batch_id)
            return False

        answers = generator.generate_batch(
            [[words[token] for token in prompt] for prompt in prompts],
            max_length=max_tokens,
            min_length=max_tokens,
            end_token=[],
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=step,
        )
        return [answer.sequences_ids[0] for answer in answers]

    serve(out, generate)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
