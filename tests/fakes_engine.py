"""Models without weights for tests of everything below the service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from daemon.backends.base import ModelSpec, TokenEvent, TokenRequest, TokenSampling
from daemon.backends.ms.segments import Segment


def write_model(
    folder: Path, backend: str = "mock", *, max_seq_len: int = 4096, options: dict[str, Any] | None = None
) -> Path:
    """The least a version's folder needs: a config.json with a serving block."""
    serving = {
        "format_version": 1,
        "backend": backend,
        "limits": {"max_seq_len": max_seq_len, "max_input_tokens": max_seq_len - 1},
        "eos_token_ids": [2],
        "options": options or {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"vocab_size": 1000, "serving": serving})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def mock_spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec(name="toy", version="1", directory=str(folder), backend="mock", options=options)


def request(prompt_ids: list[int], max_tokens: int = 16, **sampling: Any) -> TokenRequest:
    resolved = TokenSampling(max_tokens=max_tokens, **sampling)
    return TokenRequest(request_id="r", prompt_ids=prompt_ids, sampling=resolved)


async def collect(events: AsyncIterator[TokenEvent]) -> list[TokenEvent]:
    return [event async for event in events]


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def silent(fraction: float, text: str) -> None:
    """A ``Progress`` nobody watches."""


def install_backend(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, group: str = "mindport.backends"
) -> None:
    """Gives worker processes a backend ``plugged``, as a distribution would: ``source`` has ``Backend``."""
    (folder / "plugged_backend.py").write_text(source, encoding="utf-8")
    info = folder / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n", encoding="utf-8")
    entry_points = f"[{group}]\nplugged = plugged_backend:Backend\n"
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def toy_logits(cells: Iterable[int], vocab_size: int) -> npt.NDArray[np.float32]:
    """Logits that any difference in any earlier token, its position or its rotary base changes altogether."""
    state = 1
    for cell in cells:
        state = (state * 6364136223846793005 + cell) % (1 << 61)
    return np.random.default_rng(state).normal(0.0, 3.0, vocab_size).astype(np.float32)


def toy_cell(token: int, position: int, base: float) -> int:
    """What the toy model keeps in place of keys and values."""
    return token * 1_000_003 + position * 7919 + int(base)


class FakeRunner:
    """A toy model with a real paged cache: what a block table does not point to, it does not know."""

    context_len = 1 << 20
    weight_bytes = 1000
    mapped_bytes = 0
    kv_dtype = activation_dtype = "float32"
    kv_bytes_per_block = 100

    def __init__(
        self,
        *,
        vocab_size: int = 50,
        block_size: int = 4,
        num_blocks: int = 64,
        max_rows: int = 16,
        max_logit_rows: int = 8,
    ) -> None:
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_rows = max_rows
        self.max_logit_rows = max_logit_rows
        self.nan_token: int | None = None
        """A sequence with this token gets a row of NaN."""
        self.error: Exception | None = None
        self.steps: list[list[Segment]] = []
        self.closed = False
        self.adapters: list[Path] = []
        self.freed_adapters: list[int] = []
        self.likeliest: npt.NDArray[np.int64] | None = None
        self._cells = np.full((num_blocks, block_size), -1, dtype=np.int64)

    def load_adapter(self, folder: Path) -> tuple[int, int]:
        """Adapters change nothing here; each gets a number of its own."""
        self.adapters.append(folder)
        return len(self.adapters), 10

    def free_adapter(self, adapter: int) -> None:
        self.freed_adapters.append(adapter)

    def rope_for(self, prompt_len: int) -> tuple[float, float]:
        return (10_000.0 if prompt_len <= 10 else 20_000.0), 1.0

    def execute(self, segments: Sequence[Segment]) -> npt.NDArray[np.float32]:
        self.steps.append(list(segments))
        if self.error is not None:
            raise self.error
        wanted = [len(segment.token_ids) - segment.logits_from for segment in segments]
        assert sum(len(segment.token_ids) for segment in segments) <= self.max_rows
        assert sum(wanted) <= self.max_logit_rows
        for segment in segments:
            self._write(segment)
        rows = [
            row for segment, count in zip(segments, wanted, strict=True) for row in self._rows(segment, count)
        ]
        return np.stack(rows) if rows else np.zeros((0, self.vocab_size), np.float32)

    def close(self) -> None:
        self.closed = True

    def _write(self, segment: Segment) -> None:
        for offset, token in enumerate(segment.token_ids):
            position = segment.start + offset
            block = segment.block_table[position // self.block_size]
            self._cells[block, position % self.block_size] = toy_cell(token, position, segment.rope_base)

    def _rows(self, segment: Segment, count: int) -> list[npt.NDArray[np.float32]]:
        end = segment.start + len(segment.token_ids)
        cells = [
            int(self._cells[segment.block_table[position // self.block_size], position % self.block_size])
            for position in range(end)
        ]
        rows = [toy_logits(cells[: end - count + 1 + row], self.vocab_size) for row in range(count)]
        if self.nan_token in segment.token_ids:
            for row in rows:
                row[3] = np.nan
        return rows


def toy_row(tokens: Sequence[int], base: float, vocab_size: int = 50) -> npt.NDArray[np.float32]:
    """The logits after these tokens, computed without any cache."""
    cells = (toy_cell(token, position, base) for position, token in enumerate(tokens))
    return toy_logits(cells, vocab_size)


def toy_answer(asked: TokenRequest, *, context_len: int = 1 << 20, vocab_size: int = 50) -> list[int]:
    """The greedy answer of the toy model to a request alone in the world."""
    tokens, sampling = list(asked.prompt_ids), asked.sampling
    base, _ = FakeRunner(num_blocks=1).rope_for(len(tokens))
    while len(tokens) < min(context_len, len(asked.prompt_ids) + sampling.max_tokens):
        tokens.append(int(toy_row(tokens, base, vocab_size).argmax()))
        if tokens[-1] in sampling.stop_token_ids:
            break
    return tokens[len(asked.prompt_ids) :]
