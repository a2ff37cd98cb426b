"""What a model will need to run: memory of its weights and of its key/value cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from builder.families.base import Family

_KV_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
DEFAULT_BLOCK = 128
DEFAULT_BUDGET = 8 * 2**30


@dataclass(frozen=True)
class Forecast:
    weights_bytes: int
    parameters: int
    kv_dtype: str
    kv_bytes_per_token: int
    max_seq_len: int
    block_size: int
    kv_budget_bytes: int
    kv_blocks: int
    """Blocks that fit the budget."""

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.block_size

    @property
    def full_sequences(self) -> int:
        """Sequences of full length that fit the budget side by side."""
        return self.kv_blocks // -(-self.max_seq_len // self.block_size)

    @property
    def kv_bytes_per_sequence(self) -> int:
        return -(-self.max_seq_len // self.block_size) * self.block_size * self.kv_bytes_per_token

    def to_dict(self) -> dict[str, Any]:
        extra = {"kv_tokens": self.kv_tokens, "full_sequences": self.full_sequences}
        return {**asdict(self), **extra, "kv_bytes_per_sequence": self.kv_bytes_per_sequence}

    def lines(self) -> list[str]:
        """The forecast for people."""
        blocks = f"{self.kv_blocks} blocks of {self.block_size} = {self.kv_tokens:,} tokens"
        return [
            f"weights    {size_text(self.weights_bytes)}, {self.parameters:,} parameters",
            f"kv cache   {size_text(self.kv_bytes_per_token)} a token ({self.kv_dtype}), "
            f"{size_text(self.kv_bytes_per_sequence)} a sequence of {self.max_seq_len}",
            f"{size_text(self.kv_budget_bytes):10} of cache: {blocks} = {self.full_sequences} full sequences",
        ]


@dataclass(frozen=True)
class Budget:
    """What the forecast is asked for."""

    kv_bytes: int = DEFAULT_BUDGET
    block_size: int = DEFAULT_BLOCK
    world_size: int = 1


def forecast(
    family: Family,
    config: Mapping[str, Any],
    max_seq_len: int,
    sizes: tuple[int, int],
    dtype: str,
    budget: Budget,
) -> Forecast:
    """``sizes`` are the bytes and the number of the weights' parameters.

    Blocks are counted as MindIE does: budget // (block * kv heads * head width * bytes * 2 * layers).
    """
    kv_dtype = dtype if dtype in _KV_BYTES else "float16"
    kv_heads = max(1, int(config[family.kv_heads]) // budget.world_size)
    per_token = kv_heads * family.head_dim(config) * _KV_BYTES[kv_dtype] * 2 * int(config[family.layers])
    return Forecast(
        weights_bytes=sizes[0],
        parameters=sizes[1],
        kv_dtype=kv_dtype,
        kv_bytes_per_token=per_token,
        max_seq_len=max_seq_len,
        block_size=budget.block_size,
        kv_budget_bytes=budget.kv_bytes,
        kv_blocks=budget.kv_bytes // (per_token * budget.block_size),
    )


def size_text(count: int) -> str:
    """A number of bytes for people: ``60.0 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{count} B"
