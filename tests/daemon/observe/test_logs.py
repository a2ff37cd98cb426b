"""One JSON line a request, without the prompt unless asked."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.observe.logs import JsonFormatter, RequestLog, configure
from tests.fakes import fake_service, request_of


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, text = logging.getLogger(), io.StringIO()
    level = root.level
    handler = configure(text)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line for line in parsed if line["logger"] == "mindport.requests"]


@pytest.mark.parametrize("with_prompts", [False, True])
async def test_a_line_for_each_request(tmp_path: Path, stream: io.StringIO, with_prompts: bool) -> None:
    service = await fake_service(
        tmp_path, ("echo", "failing"), log_line=RequestLog(with_prompts=with_prompts)
    )
    for model in ("echo", "failing"):
        _ = [event async for event in service.generate(request_of('say "hi"', model=model))]
    abandoned = service.generate(request_of("x", model="echo"))
    await anext(abandoned)
    await abandoned.aclose()
    await asyncio.sleep(0)  # lines are written after those who wait for the end have been told
    success, failed, cancelled = lines(stream)
    assert success["outcome"] == "success"
    assert success["completion_tokens"] == success["prompt_tokens"] + 1
    assert success["model"] == "echo"
    assert success["ttft_ms"] <= success["total_ms"]
    assert success["itl_p50_ms"] <= success["itl_p99_ms"]
    assert ("prompt" in success) is with_prompts
    assert (failed["outcome"], failed["fault"]) == ("failed", "out_of_memory")
    assert cancelled["outcome"] == "cancelled"
    await service.stop(1)


def test_messages_and_exceptions_are_escaped() -> None:
    record = logging.LogRecord("a", logging.ERROR, "", 0, 'quote " %s', ("\n",), None)
    try:
        raise ValueError("bad")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == 'quote " \n'
    assert "ValueError: bad" in line["exception"]
    assert line["time"].endswith("Z")
