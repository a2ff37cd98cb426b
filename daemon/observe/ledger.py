"""What has been counted so far, per model version. Metrics pages and Triton's statistics are read from it.

Plain numbers, written by ``requests`` in the event loop only; knows nothing of Prometheus.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from daemon.observe.histogram import Histogram

_FIRST_TOKEN_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_PER_TOKEN_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
)
_LATENCY_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 128000)


class Key(NamedTuple):
    model: str
    version: str


class Outcome(NamedTuple):
    """How a request ended: ``success``, ``failed``, ``cancelled`` or ``refused``, and the fault's kind."""

    dialect: str
    outcome: str
    fault: str


@dataclass
class Duration:
    """Triton's pair of a count and a sum."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += int(seconds * 1e9)

    def to_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class VersionCounts:
    """Everything counted for one version since the daemon started."""

    received: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    last_inference_ms: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    prefill: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    first_token_s: Histogram = field(default_factory=lambda: Histogram(_FIRST_TOKEN_S))
    per_token_s: Histogram = field(default_factory=lambda: Histogram(_PER_TOKEN_S))
    latency_s: Histogram = field(default_factory=lambda: Histogram(_LATENCY_S))
    queue_s: Histogram = field(default_factory=lambda: Histogram(_LATENCY_S))
    request_prompt_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    request_generation_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))

    def total(self, *outcomes: str) -> int:
        """Requests that ended in any of these ways."""
        return sum(count for key, count in self.outcomes.items() if key.outcome in outcomes)


class Ledger:
    """All counts, by model and version."""

    def __init__(self) -> None:
        self.versions: dict[Key, VersionCounts] = {}
        self.unaddressed: Counter[Outcome] = Counter()
        """Requests that were refused before a model was found."""

    def of(self, model: str, version: str) -> VersionCounts:
        counts = self.versions.get(key := Key(model, version))
        if counts is None:
            counts = self.versions[key] = VersionCounts()
        return counts

    def statistics(self, model: str, version: str) -> dict[str, Any]:
        """Triton's statistics of one version, JSON-ready."""
        counts = self.versions.get(Key(model, version), VersionCounts())
        nothing = Duration().to_dict()
        return {
            "name": model,
            "version": version,
            "last_inference": counts.last_inference_ms,
            "inference_count": counts.success.count,
            "execution_count": counts.success.count,
            "inference_stats": {
                "success": counts.success.to_dict(),
                "fail": counts.fail.to_dict(),
                "queue": counts.queue.to_dict(),
                "compute_input": counts.prefill.to_dict(),
                "compute_infer": counts.decode.to_dict(),
                "compute_output": {"count": counts.success.count, "ns": 0},
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
            "memory_usage": [],
            "response_stats": {},
        }
