"""transformers loads a packaged folder of a family that it knows, and continues a prompt as MindPort does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from builder.package import Order, package
from builder.progress import Progress
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from tests.builder.engines.conftest import Ask
from tests.builder.hf_models import LLAMA3, QWEN, write_folder

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
ANSWER_LEN = 16
PROMPT = "hello, 你好"
PROGRAM = f"""
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = tokenizer({PROMPT!r}, return_tensors="pt").input_ids
answer = model.generate(ids, do_sample=False, min_new_tokens={ANSWER_LEN}, max_new_tokens={ANSWER_LEN})
chat = tokenizer.apply_chat_template([{{"role": "user", "content": "hi"}}], tokenize=False)
print(json.dumps({{"prompt": ids[0].tolist(), "answer": answer[0, ids.shape[1]:].tolist(), "chat": chat}}))
"""


def greedy(folder: Path, ids: list[int], banned: list[int]) -> list[int]:
    """What the ``ms`` engine continues with; ``banned`` as a minimum length bans the ends."""
    options = RunnerOptions(num_blocks=8, max_rows=64, max_logit_rows=4, threads=1)
    runner = ModelRunner.load(folder, options=options, progress=lambda fraction, what: None)
    answer: list[int] = []
    try:
        base, scale = runner.rope_for(len(ids))
        start, rows = 0, list(ids)
        while len(answer) < ANSWER_LEN:
            logits = runner.execute([Segment(rows, start, [0, 1, 2, 3], len(rows) - 1, base, scale)])[
                0
            ].copy()
            logits[banned] = -np.inf
            start, rows = start + len(rows), [int(logits.argmax())]
            answer += rows
    finally:
        runner.close()
    return answer


@pytest.mark.parametrize("config", [LLAMA3, QWEN], ids=["llama", "qwen2"])
def test_the_same_prompt_is_continued_alike(
    ask: Ask, tmp_path: Path, config: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "source", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = package(Order(model=str(source), name="m", out=tmp_path / "repository"), Progress(quiet=True))
    theirs = ask(PROGRAM, built.path)
    tokenizer = Tokenizer.from_file(str(built.path / "tokenizer.json"))
    assert theirs["prompt"] == tokenizer.encode(PROMPT).ids
    assert theirs["answer"] == greedy(built.path, theirs["prompt"], banned=[1, 2])
    assert theirs["chat"] == "<|im_start|>user\nhi<|im_end|>\n"
