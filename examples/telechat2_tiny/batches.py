"""Training conversations as padded batches of token ids."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from prompts import PAD_ID, Tokenizer, Turn, segments
from torch import Tensor

_POOL = 64  # batches whose conversations are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """One conversation: its ids and which of them the model learns to write."""

    ids: NDArray[np.int16]
    learned: NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, where a next token is learned, and those next tokens in order."""

    ids: Tensor
    where: Tensor
    targets: Tensor


def load_conversations(path: Path, tokenizer: Tokenizer, seed: int) -> list[Encoded]:
    """Encode ``train.jsonl``; a share of the questions is split into rarer, smaller pieces on purpose."""
    rng = random.Random(f"dropout-{seed}")
    tokenizer.seed_dropout(seed)
    conversations = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            conversations.append(_encode(row, tokenizer, dropout=rng.random() < 0.25))
    return conversations


def _encode(row: dict[str, object], tokenizer: Tokenizer, *, dropout: bool) -> Encoded:
    turns = [Turn(**turn) for turn in row["turns"]]  # type: ignore[attr-defined]
    ids: list[int] = []
    learned: list[bool] = []
    for segment in segments(str(row["form"]), turns, row["system"]):  # type: ignore[arg-type]
        part = tokenizer.encode(segment.text, dropout=dropout and not segment.learned)
        ids += part
        learned += [segment.learned] * len(part)
    return Encoded(np.array(ids, np.int16), np.array(learned, np.bool_))


def batches(conversations: list[Encoded], tokens: int, seed: int, device: torch.device) -> Iterator[Batch]:
    """Yield shuffled batches of about ``tokens`` padded tokens, pass after pass, forever."""
    order = np.random.default_rng(seed)
    while True:
        waiting: list[Encoded] = []
        size = 0
        for index in order.permutation(len(conversations)):
            waiting.append(conversations[index])
            size += len(conversations[index].ids)
            if size >= tokens * _POOL:
                yield from _sorted_batches(waiting, tokens, order, device)
                waiting, size = [], 0


def _sorted_batches(
    pool: list[Encoded], tokens: int, order: np.random.Generator, device: torch.device
) -> Iterator[Batch]:
    pool.sort(key=lambda conversation: len(conversation.ids))
    groups: list[list[Encoded]] = [[]]
    for conversation in pool:
        if (len(groups[-1]) + 1) * len(conversation.ids) > tokens and groups[-1]:
            groups.append([])
        groups[-1].append(conversation)
    for index in order.permutation(len(groups)):
        yield _pad(groups[index], device)


def _pad(group: list[Encoded], device: torch.device) -> Batch:
    length = max(len(conversation.ids) for conversation in group)
    ids = np.full((len(group), length), PAD_ID, np.int64)
    learned = np.zeros((len(group), length), np.bool_)
    for row, conversation in enumerate(group):
        ids[row, : len(conversation.ids)] = conversation.ids
        learned[row, : len(conversation.ids)] = conversation.learned
    where = learned[:, 1:]
    targets = ids[:, 1:][where]
    return Batch(*(torch.from_numpy(part).to(device) for part in (ids[:, :-1].copy(), where.copy(), targets)))
