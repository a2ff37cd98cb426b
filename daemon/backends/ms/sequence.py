"""A request as the engine sees it: tokens, how many of them are computed, and where their KV lies."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from daemon.backends.base import TokenChoice, TokenRequest, TokenSampling
from daemon.backends.ms.prompt_lookup import PromptLookup

_DIGEST_BYTES = 16


@dataclass(eq=False)
class Sequence:
    """Prompt and answer so far. Changed only by the engine's thread once it is submitted."""

    number: int
    """The engine's handle, increasing in order of arrival."""
    request: TokenRequest
    rope: tuple[float, float]
    """Base and scale, fixed by the prompt's length."""
    arrived: float = field(default_factory=time.monotonic)
    adapter: int = 0
    """Of the shelf; 0: none."""
    computed: int = 0
    """Tokens whose keys and values are in the blocks of ``block_table``."""
    block_table: list[int] = field(default_factory=list)
    found: int = 0
    """Leading blocks taken from the prefix cache: what they hold, others computed."""
    committed: int = 0
    """Leading blocks offered to the prefix cache, or taken from it."""
    prompt_choices: list[TokenChoice] = field(default_factory=list)
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache at the first admission."""
    queue_s: float = 0.0
    began: float | None = None
    """When its answer began."""
    keeps_place: bool = False
    """It got its place for its age: the urgent do not displace it."""
    max_len: int = 1 << 62
    """Prompt and answer together."""
    lookup: PromptLookup | None = None

    def __post_init__(self) -> None:
        self.came = self.arrived
        """When it arrived or last lacked a place: it may not delay answers that had begun by then."""
        self.token_ids = list(self.request.prompt_ids)
        self.prompt_len = len(self.token_ids)
        self._hashes = [struct.pack("<ddq", *self.rope, self.adapter)]

    @property
    def sampling(self) -> TokenSampling:
        return self.request.sampling

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def caller(self) -> str:
        return self.request.caller

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Among the running: smaller is served first and preempted last."""
        return not self.keeps_place, self.priority, self.number

    @property
    def weight(self) -> tuple[int, int]:
        """Among prompts: the smaller goes ahead."""
        return self.priority, self.remaining

    @property
    def remaining(self) -> int:
        """Tokens still to compute before the next can be chosen."""
        return len(self.token_ids) - self.computed

    def guess(self, most: int) -> tuple[int, ...]:
        """Tokens that may come next, so that there is room for one more after them."""
        if self.lookup is None:
            return ()
        return self.lookup.guess(self.token_ids, min(most, self.max_len - len(self.token_ids) - 1))

    @property
    def answer(self) -> list[int]:
        return self.token_ids[self.prompt_len :]

    @property
    def answer_len(self) -> int:
        return len(self.token_ids) - self.prompt_len

    @property
    def wants_prompt_choices(self) -> bool:
        """Log-probabilities of prompt tokens are asked for and not yet complete."""
        wanted = self.sampling.prompt_logprobs is not None
        return wanted and len(self.prompt_choices) < self.prompt_len - 1

    @cached_property
    def random(self) -> np.random.Generator:
        """Made when first drawn from: greedy answers need none."""
        seed = self.sampling.seed
        return np.random.Generator(np.random.PCG64(None if seed is None else seed % (1 << 64)))

    @cached_property
    def prompt_vocabulary(self) -> NDArray[np.int64]:
        """Each id of the prompt once."""
        return np.unique(np.array(self.token_ids[: self.prompt_len], dtype=np.int64))

    def block_hash(self, index: int, block_size: int) -> bytes:
        """Of a full block and everything before it, rotary settings and adapter included."""
        while len(self._hashes) <= index + 1:
            start = (len(self._hashes) - 1) * block_size
            tokens = self.token_ids[start : start + block_size]
            text = self._hashes[-1] + struct.pack(f"<{block_size}i", *tokens)
            self._hashes.append(blake2b(text, digest_size=_DIGEST_BYTES).digest())
        return self._hashes[index + 1]
