"""The names that existing boards read, with the right numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract.faults import Fault
from daemon.observe.histogram import Histogram
from daemon.service.daemon_service import DaemonService
from tests.fakes import fake_service, request_of

MINDIE = [
    "request_received_total",
    "request_success_total",
    "request_failed_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_swapped",
    "avg_prompt_throughput_toks_per_s",
    "avg_generation_throughput_toks_per_s",
    "failed_request_perc",
    "npu_cache_usage_perc",
    "cpu_cache_usage_perc",
    "npu_prefix_cache_hit_rate",
    "all_radix_match_num",
    "npu_radix_match_hit_num",
    "time_to_first_token_seconds_bucket",
    "time_per_output_token_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
]
TRITON = [
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_inference_pending_request_count",
]
VLLM = [
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
]


async def samples(service: DaemonService) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    page, content_type = await service.metrics_page()
    assert content_type.startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            # This parser insists on "_total" for counters; Triton and its users do without.
            name = sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name
            found[name, frozenset(sample.labels.items())] = sample.value
    return found


async def test_names_and_numbers(tmp_path: Path) -> None:
    service = await fake_service(tmp_path, ("echo", "failing"))
    tokens = len(await service.tokenize("echo", "hello"))
    for model in ("echo", "echo", "failing"):
        _ = [event async for event in service.generate(request_of("hello", model=model))]
    with pytest.raises(Fault):
        await anext(service.generate(request_of("x", model="nobody")))
    found = await samples(service)
    names = {name for name, _ in found}
    assert not set(MINDIE) - names
    assert not set(TRITON) - names
    assert not set(VLLM) - names
    mindie = frozenset({"model_name": "echo", "version": "1"}.items())
    triton = {"model": "echo", "version": "1"}
    assert found["prompt_tokens_total", mindie] == 2 * tokens
    assert found["vllm:generation_tokens_total", mindie] == 2 * (tokens + 1)
    assert found["time_to_first_token_seconds_count", mindie] == 2
    assert found["time_per_output_token_seconds_count", mindie] == 2 * tokens
    assert found["npu_cache_usage_perc", mindie] == 0.25
    assert found["nv_inference_request_success", frozenset(triton.items())] == 2
    failure = {"model": "failing", "version": "1", "reason": "OTHER"}
    assert found["nv_inference_request_failure", frozenset(failure.items())] == 0
    failure["reason"] = "BACKEND"
    assert found["nv_inference_request_failure", frozenset(failure.items())] == 1
    unknown = {"model": "", "version": "", "dialect": "mindie", "outcome": "refused", "fault": "not_found"}
    assert found["mindport_requests_total", frozenset(unknown.items())] == 1
    state = {**triton, "backend": "echo", "state": "ready"}
    assert found["mindport_model_state", frozenset(state.items())] == 1
    await service.stop(1)


async def test_triton_counters_are_counters(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    page, _ = await service.metrics_page()
    assert b"# TYPE nv_inference_request_success counter" in page
    assert b"untyped" not in page
    await service.stop(1)


async def test_statistics(tmp_path: Path) -> None:
    service = await fake_service(tmp_path)
    _ = [event async for event in service.generate(request_of("hello"))]
    (one,) = await service.statistics("echo")
    stats = one["inference_stats"]
    assert (one["name"], one["version"], one["inference_count"]) == ("echo", "1", 1)
    assert stats["success"]["count"] == 1
    parts = sum(stats[part]["ns"] for part in ("queue", "compute_input", "compute_infer"))
    assert parts <= stats["success"]["ns"] * 1.01
    with pytest.raises(Fault):
        await service.statistics("nobody")
    await service.stop(1)


def test_histogram() -> None:
    histogram = Histogram([1, 10])
    histogram.observe(1)
    histogram.observe(5, weight=3)
    histogram.observe(11)
    assert histogram.cumulative() == [("1", 1), ("10", 4), ("+Inf", 5)]
    assert (histogram.total, histogram.count) == (27, 5)
