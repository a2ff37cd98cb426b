"""Greedy answers from the torch model, for the report at the end of training."""

import torch
from model import TeleChat2
from prompts import END_ID, PAD_ID, Tokenizer

_BATCH = 48


@torch.inference_mode()
def answer_all(model: TeleChat2, tokenizer: Tokenizer, prompts: list[str], limit: int = 128) -> list[str]:
    """Answer each prompt greedily until ``<_end>`` or ``limit`` tokens."""
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        continuations = _continue(model, [encoded[index] for index in chosen], limit)
        for index, ids in zip(chosen, continuations, strict=True):
            answers[index] = tokenizer.decode(ids)
    return answers


def _continue(model: TeleChat2, prompts: list[list[int]], limit: int) -> list[list[int]]:
    device = next(model.parameters()).device
    sequences = [list(prompt) for prompt in prompts]
    open_rows = list(range(len(sequences)))
    for _ in range(limit):
        length = max(len(sequences[row]) for row in open_rows)
        padded = [sequences[row] + [PAD_ID] * (length - len(sequences[row])) for row in open_rows]
        last = torch.zeros(len(open_rows), length, dtype=torch.bool, device=device)
        last[range(len(open_rows)), [len(sequences[row]) - 1 for row in open_rows]] = True
        tokens = model(torch.tensor(padded, device=device), last).argmax(-1).tolist()
        for row, token in zip(open_rows, tokens, strict=True):
            sequences[row].append(token)
        open_rows = [row for row in open_rows if sequences[row][-1] != END_ID]
        if not open_rows:
            break
    return [sequence[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]
