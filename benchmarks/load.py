"""Sends completions to an OpenAI endpoint and takes the times, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 600.0
_POLL_S = 0.02


class EngineError(Exception):
    """An engine did not do what was asked; the text says what."""


@dataclass(slots=True)
class Answer:
    """One streamed completion. Times are seconds on one clock."""

    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """When each piece of text came."""
    tokens: int = 0

    @property
    def first_token_s(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def decode_per_s(self) -> float:
        """Tokens a second after the first. Raises ``EngineError`` when no time passed between them."""
        if len(self.arrivals) < 2:
            raise EngineError("the answer came in one piece: there are no times between its tokens")
        return (self.tokens - 1) / (self.arrivals[-1] - self.arrivals[0])

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


def post(port: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One answer as JSON. Raises ``EngineError``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        response = _request(connection, path, body)
        answer: dict[str, Any] = json.loads(response.read())
        return answer
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineError(f"POST {path}: {error!r}") from None
    finally:
        connection.close()


def get(port: int, path: str) -> dict[str, Any]:
    """One answer as JSON. Raises ``EngineError``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineError(f"GET {path}: {error!r}") from None
    finally:
        connection.close()


def is_ready(port: int, path: str) -> bool:
    """Whether a GET of ``path`` is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stream_all(port: int, bodies: list[dict[str, Any]]) -> list[Answer]:
    """All completions at once, each over a connection of its own. Raises ``EngineError``."""
    answers = [Answer() for _ in bodies]
    failures: list[Exception] = []
    barrier = threading.Barrier(len(bodies))

    def one(body: dict[str, Any], answer: Answer) -> None:
        try:
            barrier.wait(TIMEOUT_S)
            _stream(port, body, answer)
        except Exception as error:  # raised again where it is seen
            failures.append(error)

    threads = [
        threading.Thread(target=one, args=pair, daemon=True) for pair in zip(bodies, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise EngineError(str(failures[0]))
    return answers


class Streams:
    """Completions that run in the background until they are closed."""

    def __init__(self, port: int, bodies: list[dict[str, Any]]) -> None:
        self.answers = [Answer() for _ in bodies]
        self._closing = threading.Event()
        self._failures: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._one, args=(port, *pair), daemon=True)
            for pair in zip(bodies, self.answers, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, tokens: int) -> None:
        """Until every stream has so many. Raises ``EngineError``."""
        limit = time.monotonic() + TIMEOUT_S
        while min(len(answer.arrivals) for answer in self.answers) < tokens:
            if self._failures:
                raise EngineError(str(self._failures[0]))
            if time.monotonic() > limit:
                raise EngineError(f"no {tokens} tokens in {TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)

    def gaps_between(self, begin: float, end: float) -> list[float]:
        """Of all streams, those that ended in this time."""
        return [
            later - earlier
            for answer in self.answers
            for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)
            if begin <= later <= end
        ]

    def close(self) -> None:
        """Hang up. Raises ``EngineError`` when a stream had failed or had ended by itself."""
        ended = not all(thread.is_alive() for thread in self._threads)
        self._closing.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise EngineError(str(self._failures[0]))
        if ended:
            raise EngineError("a stream ended too early")

    def _one(self, port: int, body: dict[str, Any], answer: Answer) -> None:
        try:
            _stream(port, body, answer, self._closing)
        except Exception as error:  # raised again where it is seen
            self._failures.append(error)


def _stream(port: int, body: dict[str, Any], answer: Answer, closing: threading.Event | None = None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        answer.sent = time.perf_counter()
        whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
        for line in _request(connection, "/v1/completions", whole):
            if line.startswith(b"data: {"):
                _take(json.loads(line[6:]), answer, body["max_tokens"])
            if closing is not None and closing.is_set():
                return
    finally:
        connection.close()
    if answer.tokens != body["max_tokens"]:
        raise EngineError(f"asked for {body['max_tokens']} tokens, got {answer.tokens}")


def _take(chunk: dict[str, Any], answer: Answer, most: int) -> None:
    if "error" in chunk:
        raise EngineError(str(chunk["error"]))
    usage = chunk.get("usage")
    if usage:
        answer.tokens = int(usage["completion_tokens"])
    # Some servers close with an empty piece, which is not a token.
    if chunk.get("choices") and len(answer.arrivals) < most:
        answer.arrivals.append(time.perf_counter())


def _request(
    connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any]
) -> http.client.HTTPResponse:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise EngineError(
            f"POST {path}: HTTP {response.status}: {response.read(500).decode('utf-8', 'replace')}"
        )
    return response
