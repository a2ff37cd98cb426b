"""Random requests over HTTP and gRPC, good and bad, and whether each of them ended exactly once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import httpx2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from contract.tensors import number_tensor, string_tensor

WORDS = [
    "生抽",
    "老抽",
    "的",
    "区别",
    "是",
    "什么",
    "？",
    "你好",
    "，",
    "从前",
    "有",
    "座",
    "山",
    "hello",
    "12",
    "\n",
]
LIMIT_S = 120.0
"""No request of the soak takes longer, unless it is lost."""


@dataclass
class Tally:
    """How requests ended, by kind, and what was wrong."""

    ended: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def ending(self, kind: str, how: str) -> None:
        self.ended[f"{kind}: {how}"] += 1

    @property
    def total(self) -> int:
        return sum(self.ended.values())


class Chance:
    """What a request of the soak looks like."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def prompt(self) -> str:
        lengths = (1, 5, 30, 200, 400)
        length = self.random.choice(lengths)
        words = self.random.choices(WORDS, k=self.random.randint(1, length))
        shared = "".join(WORDS) * self.random.choice((0, 0, 3))
        return shared + "".join(words) or "你"

    def options(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {"max_tokens": self.random.choice((1, 4, 20, 60, 200))}
        if self.random.random() < 0.5:
            chosen |= {"temperature": self.random.choice((0.0, 0.7, 1.5)), "seed": self.random.randint(0, 99)}
        if self.random.random() < 0.3:
            chosen |= {"temperature": 1.0, "top_p": self.random.choice((0.3, 0.9, 0.999))}
        if self.random.random() < 0.4:
            chosen["priority"] = self.random.randint(-3, 3)
        if self.random.random() < 0.2:
            chosen |= {"repetition_penalty": 1.2, "ignore_eos": True}
        if self.random.random() < 0.1:
            chosen["stop"] = [self.random.choice(WORDS[:12])]
        return chosen

    def patience_s(self) -> float:
        """Until the caller goes away; mostly it stays."""
        return self.random.choice((LIMIT_S, LIMIT_S, LIMIT_S, 0.2, 0.05, 0.005))

    def bad(self, model: str) -> tuple[str, str | dict[str, Any], int]:
        """A path, a body, and the status it must get."""
        completion, generate = "/v1/completions", f"/v2/models/{model}/generate"
        bodies: list[tuple[str, str | dict[str, Any], int]] = [
            (completion, "{", 400),
            (completion, {"model": model, "prompt": ""}, 400),
            (completion, {"model": model, "prompt": []}, 400),
            (completion, {"model": model, "prompt": "你" * 3000}, 400),
            (completion, {"model": model, "prompt": "你", "max_tokens": -1}, 400),
            (completion, {"model": model, "prompt": "你", "priority": "soon"}, 400),
            (completion, {"model": model, "prompt": [10**9]}, 400),
            (completion, {"model": "nobody", "prompt": "你"}, 404),
            (generate, {"text_input": "你", "temperature": "hot"}, 400),
            (generate, {"text_input": ["a", "b"]}, 400),
        ]
        return self.random.choice(bodies)


class Traffic:
    """One caller among several; ``run`` until told otherwise."""

    def __init__(self, http: str, grpc_address: str, model: str, seed: int, tally: Tally) -> None:
        self._http = httpx2.AsyncClient(base_url=http, timeout=LIMIT_S)
        self._channel = grpc.aio.insecure_channel(grpc_address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._model = model
        self._chance = Chance(seed)
        self._tally = tally

    async def run(self, stop: asyncio.Event, pause_s: float) -> None:
        kinds = (self.http_whole, self.http_stream, self.chat_stream, self.grpc_whole, self.grpc_stream)
        try:
            while not stop.is_set():
                kind = self._chance.random.choice((*kinds, *kinds, self.bad_input))
                await self._one(kind)
                await asyncio.sleep(self._chance.random.uniform(0, 2 * pause_s))
        finally:
            await self._http.aclose()
            await self._channel.close()

    async def _one(self, kind: Any) -> None:
        name = kind.__name__
        patience_s = LIMIT_S if kind == self.bad_input else self._chance.patience_s()
        patience = asyncio.timeout(patience_s)
        try:
            async with patience:
                how = await kind()
        except (TimeoutError, asyncio.CancelledError):
            # gRPC's iterator swallows the cancellation at times and raises one of its own.
            how = "went away"
            if not patience.expired():
                self._tally.problems.append(f"{name} was cancelled by the daemon")
            elif patience_s == LIMIT_S:
                self._tally.problems.append(f"{name} did not end within {LIMIT_S:g} s")
        except (AssertionError, httpx2.HTTPError) as error:
            how = "wrong"
            self._tally.problems.append(f"{name}: {error!r}")
        self._tally.ending(name, how)

    async def bad_input(self) -> str:
        path, body, wanted = self._chance.bad(self._model)
        content = body if isinstance(body, str) else json.dumps(body)
        response = await self._http.post(path, content=content)
        assert response.status_code == wanted, (
            f"{path} {content[:60]}: {response.status_code} {response.text}"
        )
        assert response.json()["error"], response.text
        return "refused"

    async def http_whole(self) -> str:
        body = {"model": self._model, "prompt": self._chance.prompt(), **self._chance.options()}
        response = await self._http.post("/v1/completions", json=body)
        if response.status_code != 200:
            return _refused(response.status_code, response.text)
        choices = response.json()["choices"]
        assert [choice["finish_reason"] in ("stop", "length") for choice in choices] == [True], choices
        return "finished"

    async def http_stream(self) -> str:
        body = {"model": self._model, "prompt": self._chance.prompt(), **self._chance.options()}
        body["n"] = answers = self._chance.random.choice((1, 1, 3))
        return await self._stream("/v1/completions", body, answers)

    async def chat_stream(self) -> str:
        messages = [{"role": "user", "content": self._chance.prompt()}]
        body = {"model": self._model, "messages": messages, **self._chance.options()}
        return await self._stream("/v1/chat/completions", body, 1)

    async def _stream(self, path: str, body: dict[str, Any], answers: int) -> str:
        async with self._http.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                return _refused(response.status_code, (await response.aread()).decode())
            data = [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]
        events = [json.loads(text) for text in data if text != "[DONE]"]
        errors = [event["error"] for event in events if "error" in event]
        ends = Counter(
            choice["index"]
            for event in events
            for choice in event.get("choices", ())
            if choice["finish_reason"] is not None
        )
        if errors:
            assert len(errors) == 1, errors
            assert "error" in events[-1], "something follows an error"
            return _refused(503, json.dumps(errors[0]))
        assert ends == dict.fromkeys(range(answers), 1), f"endings of each answer: {ends}"
        assert data.count("[DONE]") == 1, f"{data.count('[DONE]')} times [DONE]"
        assert data[-1] == "[DONE]", "something follows [DONE]"
        return "finished"

    async def grpc_whole(self) -> str:
        try:
            response = await self._stub.ModelInfer(self._request(stream=False))
        except grpc.aio.AioRpcError as error:
            return _refused_grpc(error.details() or "")
        assert response.outputs
        return "finished"

    async def grpc_stream(self) -> str:
        finals = 0
        call = self._stub.ModelStreamInfer(iter([self._request(stream=True)]))
        try:
            async for message in call:
                if message.error_message:
                    return _refused_grpc(message.error_message)
                assert finals == 0, "something follows the final response"
                finals += message.infer_response.parameters["triton_final_response"].bool_param
        finally:
            call.cancel()
        assert finals == 1, f"{finals} final responses"
        return "finished"

    def _request(self, *, stream: bool) -> Any:
        request = pb.ModelInferRequest(model_name=self._model)
        request.parameters["priority"].int64_param = self._chance.random.randint(0, 5)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        values = {
            "text_input": self._chance.prompt(),
            "sampling_parameters": json.dumps(self._chance.options()),
        }
        tensors = [string_tensor(name, [value]) for name, value in values.items()]
        for tensor in (*tensors, number_tensor("stream", "BOOL", [stream])):
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.data)
        return request


def _refused(status: int, text: str) -> str:
    """A full queue and too long a prompt are answers; nothing else is."""
    assert status in (400, 429, 503), f"{status}: {text}"
    assert "limit" in text or "context" in text or "tokens" in text, text
    return "refused"


def _refused_grpc(text: str) -> str:
    assert "limit" in text or "context" in text or "tokens" in text, text
    return "refused"
