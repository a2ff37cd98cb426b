"""Prometheus families from the ledger and the engines' numbers. Every name that a page shows is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from daemon.backends.base import BackendStats
from daemon.observe.histogram import Histogram
from daemon.observe.ledger import Key, Ledger, VersionCounts
from daemon.repository.status import ModelStatus, State

Engine = tuple[Key, BackendStats, int]
"""A version, its engine's numbers, and the requests that wait outside the engine."""

_LABELS = ("model_name", "version")
_FAILURE_REASONS = {
    "overloaded": "REJECTED",
    "model_crashed": "BACKEND",
    "out_of_memory": "BACKEND",
    "internal": "BACKEND",
}


def counter_families(ledger: Ledger) -> Iterator[Metric]:
    """Counters under all names."""
    for name, text, count in _COUNTERS:
        for full in (name, f"vllm:{name}"):
            family = CounterMetricFamily(full, text, labels=_LABELS)
            for key, counts in ledger.versions.items():
                family.add_metric(key, count(counts))
            yield family
    for name, text, count in _TRITON_COUNTERS:
        metric = Metric(f"nv_inference_{name}", text, "unknown")
        for key, counts in ledger.versions.items():
            metric.add_sample(metric.name, {"model": key.model, "version": key.version}, count(counts))
        yield metric
    yield _triton_failures(ledger)
    yield _outcomes(ledger)


def _triton_failures(ledger: Ledger) -> Metric:
    metric = Metric("nv_inference_request_failure", "Failed inference requests by reason", "unknown")
    for key, counts in ledger.versions.items():
        reasons = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for outcome, number in counts.outcomes.items():
            if outcome.outcome == "cancelled":
                reasons["CANCELED"] += number
            elif outcome.outcome != "success":
                reasons[_FAILURE_REASONS.get(outcome.fault, "OTHER")] += number
        for reason, number in reasons.items():
            labels = {"model": key.model, "version": key.version, "reason": reason}
            metric.add_sample(metric.name, labels, number)
    return metric


def _outcomes(ledger: Ledger) -> Metric:
    labels = ("model", "version", "dialect", "outcome", "fault")
    family = CounterMetricFamily("mindport_requests", "Requests by how they ended", labels=labels)
    for key, counts in ledger.versions.items():
        for outcome, number in counts.outcomes.items():
            family.add_metric((*key, *outcome), number)
    for outcome, number in ledger.unaddressed.items():
        family.add_metric(("", "", *outcome), number)
    return family


def histogram_families(ledger: Ledger) -> Iterator[Metric]:
    """Histograms under MindIE's and vLLM's names."""
    for names, text, histogram in _HISTOGRAMS:
        for name in names:
            family = HistogramMetricFamily(name, text, labels=_LABELS)
            for key, counts in ledger.versions.items():
                one = histogram(counts)
                family.add_metric(key, one.cumulative(), one.total)
            yield family


def gauge_families(
    ledger: Ledger, engines: Sequence[Engine], rates: Mapping[Key, tuple[float, float]]
) -> Iterator[Metric]:
    """What is true now."""
    for names, text, read in _GAUGES:
        for name in names:
            family = GaugeMetricFamily(name, text, labels=_LABELS)
            for key, stats, queued in engines:
                family.add_metric(key, read(stats, queued))
            yield family
    pending = GaugeMetricFamily(
        "nv_inference_pending_request_count", "Requests waiting to run", labels=("model", "version")
    )
    for key, stats, queued in engines:
        pending.add_metric(key, stats.waiting + queued)
    yield pending
    prompt = GaugeMetricFamily("avg_prompt_throughput_toks_per_s", "Since the previous page", labels=_LABELS)
    generated = GaugeMetricFamily(
        "avg_generation_throughput_toks_per_s", "Since the previous page", labels=_LABELS
    )
    for key, (prompt_rate, generation_rate) in rates.items():
        prompt.add_metric(key, prompt_rate)
        generated.add_metric(key, generation_rate)
    yield prompt
    yield generated
    failed = GaugeMetricFamily(
        "failed_request_perc", "Failed among received requests, 0 to 1", labels=_LABELS
    )
    for key, counts in ledger.versions.items():
        failed.add_metric(key, counts.total("failed", "refused") / max(1, counts.received))
    yield failed


def state_families(statuses: Sequence[ModelStatus]) -> Iterator[Metric]:
    """Each version's state, restarts and memory."""
    labels = ("model", "version", "backend")
    states = GaugeMetricFamily("mindport_model_state", "1 for the state it is in", labels=(*labels, "state"))
    restarts = CounterMetricFamily(
        "mindport_model_restarts", "Restarts after a worker's death", labels=labels
    )
    memory = GaugeMetricFamily("mindport_model_memory_bytes", "As the engine reports it", labels=labels)
    for status in statuses:
        values = (status.name, status.version, status.backend)
        for state in State:
            states.add_metric((*values, state.value), float(state is status.state))
        restarts.add_metric(values, status.restarts)
        memory.add_metric(values, status.memory_bytes)
    yield from (states, restarts, memory)


_COUNTERS: Sequence[tuple[str, str, Callable[[VersionCounts], float]]] = (
    ("request_received_total", "Requests received", lambda one: one.received),
    ("request_success_total", "Requests answered completely", lambda one: one.total("success")),
    (
        "request_failed_total",
        "Requests failed, refused or cancelled",
        lambda one: one.total("failed", "refused", "cancelled"),
    ),
    ("prompt_tokens_total", "Prompt tokens of accepted requests", lambda one: one.prompt_tokens),
    ("generation_tokens_total", "Tokens generated", lambda one: one.generation_tokens),
)
_TRITON_COUNTERS: Sequence[tuple[str, str, Callable[[VersionCounts], float]]] = (
    ("request_success", "Successful inference requests", lambda one: one.success.count),
    ("count", "Inferences performed", lambda one: one.success.count),
    ("exec_count", "Model executions performed", lambda one: one.success.count),
    (
        "request_duration_us",
        "Cumulative request duration",
        lambda one: (one.success.ns + one.fail.ns) // 1000,
    ),
    ("queue_duration_us", "Cumulative queuing duration", lambda one: one.queue.ns // 1000),
    ("compute_input_duration_us", "Cumulative time to the first token", lambda one: one.prefill.ns // 1000),
    ("compute_infer_duration_us", "Cumulative time after the first token", lambda one: one.decode.ns // 1000),
    ("compute_output_duration_us", "Cumulative output duration", lambda one: 0),
)
_HISTOGRAMS: Sequence[tuple[tuple[str, ...], str, Callable[[VersionCounts], Histogram]]] = (
    (
        ("time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
        "From arrival to the first token",
        lambda one: one.first_token_s,
    ),
    (
        (
            "time_per_output_token_seconds",
            "vllm:time_per_output_token_seconds",
            "vllm:inter_token_latency_seconds",
        ),
        "Between tokens",
        lambda one: one.per_token_s,
    ),
    (
        ("e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds"),
        "From arrival to the last token",
        lambda one: one.latency_s,
    ),
    (("vllm:request_queue_time_seconds",), "In queues", lambda one: one.queue_s),
    (
        ("request_prompt_tokens", "vllm:request_prompt_tokens"),
        "Prompt tokens of a request",
        lambda one: one.request_prompt_tokens,
    ),
    (
        ("request_generation_tokens", "vllm:request_generation_tokens"),
        "Generated tokens of a request",
        lambda one: one.request_generation_tokens,
    ),
)


def _hit_rate(stats: BackendStats, _: int) -> float:
    return stats.prefix_hit_tokens / stats.prompt_tokens if stats.prompt_tokens else 0.0


_GAUGES: Sequence[tuple[tuple[str, ...], str, Callable[[BackendStats, int], float]]] = (
    (("num_requests_running", "vllm:num_requests_running"), "In the engine", lambda stats, _: stats.running),
    (
        ("num_requests_waiting", "vllm:num_requests_waiting"),
        "Waiting to run",
        lambda stats, queued: stats.waiting + queued,
    ),
    (("num_requests_swapped",), "Always 0: sequences are computed again, not swapped", lambda stats, _: 0),
    (
        ("npu_cache_usage_perc", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "KV cache in use, 0 to 1",
        lambda stats, _: stats.kv_used_fraction,
    ),
    (("cpu_cache_usage_perc",), "Always 0: there is no second cache", lambda stats, _: 0),
    (("npu_prefix_cache_hit_rate",), "Prompt tokens found in the prefix cache, 0 to 1", _hit_rate),
    (("all_radix_match_num",), "Prompt tokens looked up", lambda stats, _: stats.prompt_tokens),
    (("npu_radix_match_hit_num",), "Prompt tokens found", lambda stats, _: stats.prefix_hit_tokens),
    (
        ("num_preemptions_total", "vllm:num_preemptions_total"),
        "Preemptions",
        lambda stats, _: stats.preemptions,
    ),
    (
        ("spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_draft_tokens_total"),
        "Tokens guessed",
        lambda stats, _: stats.guessed_tokens,
    ),
    (
        ("spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"),
        "Guessed tokens that were chosen",
        lambda stats, _: stats.right_guesses,
    ),
)
