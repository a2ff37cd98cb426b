"""The transport over HTTP: OpenAI's completions and chats, Triton's health and repository index."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx2

from client.address import Address
from client.errors import (
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    ModelNotFoundError,
    ProtocolError,
    UnauthenticatedError,
)
from client.http_errors import error_of_body, error_of_response
from client.options import invalid
from client.perplexity import Tokens
from client.protocol_probe import wrong_protocol
from client.results import UNAVAILABLE, Chunk, Health, ModelCard, TokenScore
from client.sse import EventDecoder
from client.transport import message_fields, sampling_fields
from contract.generation import GenerateRequest, Usage

_CONNECT_TIMEOUT_S = 5.0


class HttpTransport:
    """Speaks to a daemon's inference port, or to any server with OpenAI's API."""

    def __init__(self, address: Address, api_key: str | None) -> None:
        self._address = address
        self._http = httpx2.AsyncClient(
            base_url=str(address),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=not address.is_loopback,
        )

    async def generate(self, request: GenerateRequest, *, stream: bool) -> AsyncGenerator[Chunk, None]:
        path = "/v1/completions" if request.messages is None else "/v1/chat/completions"
        headers = {"X-Request-Id": request.request_id}
        async with self._send("POST", path, json=_body(request, stream), headers=headers) as response:
            if response.status_code != 200:
                raise error_of_response(response, await response.aread(), request.request_id)
            if not stream:
                yield _chunk(_decode(await response.aread(), request.request_id), request.request_id)
                return
            async with aclosing(_chunks(response, request.request_id)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def models(self) -> list[ModelCard]:
        only_index = False
        listed: dict[str, Any] = {}
        try:
            listed = await self._json("GET", "/v1/models")
        except ModelNotFoundError:  # a server with Triton's API alone
            only_index = True
        lengths = {card["id"]: card.get("max_model_len") for card in listed.get("data", [])}
        async with self._send("POST", "/v2/repository/index", json={}) as response:
            body = await response.aread()
        if response.status_code in {404, 405} and not only_index:  # a server with OpenAI's API alone
            return [ModelCard(name=name, context_len=length) for name, length in lengths.items()]
        if response.status_code != 200:
            raise error_of_response(response, body, "")
        adapters = [
            ModelCard(name=card["id"], context_len=card.get("max_model_len"), parent=card["parent"])
            for card in listed.get("data", [])
            if card.get("parent")
        ]
        return [*(_card(entry, lengths) for entry in _decode(body, "")), *adapters]

    async def health(self, model: str | None) -> Health:
        live = await self._ok("/v2/health/live")
        ready = live and await self._ok("/v2/health/ready")
        server = await self._server() if live else ""
        if model is None:
            return Health(live=live, ready=ready, server=server)
        name, _, version = model.partition("@")
        path = f"/v2/models/{name}/versions/{version}/ready" if version else f"/v2/models/{name}/ready"
        return Health(live=live, ready=ready, model=model, model_ready=await self._ok(path), server=server)

    async def _server(self) -> str:
        """Name and version, for which a daemon wants a key, as it does not for health."""
        try:
            metadata = await self._json("GET", "/v2")
        except UnauthenticatedError:
            return ""
        return f"{metadata.get('name', '')} {metadata.get('version', '')}".strip()

    async def load(self, model: str) -> None:
        await self._order(*_control_of(model, "load"))

    async def unload(self, model: str) -> None:
        await self._order(*_control_of(model, "unload"))

    async def load_adapter(self, model: str | None, name: str, folder: str) -> None:
        body = {"lora_name": name, "lora_path": folder} | ({"model": model} if model else {})
        await self._order("/v1/load_lora_adapter", body)

    async def unload_adapter(self, name: str) -> None:
        await self._order("/v1/unload_lora_adapter", {"lora_name": name})

    async def tokenize(self, text: str, model: str | None) -> Tokens:
        found = await self._answer("/tokenize", {"prompt": text, "model": model})
        try:
            return Tokens(tuple(map(int, found["tokens"])), found.get("max_model_len"))
        except (KeyError, TypeError, ValueError):
            raise ProtocolError(f"{self._address}/tokenize answered without tokens") from None

    async def score(self, ids: Sequence[int], model: str | None) -> list[float]:
        body = {"model": model, "prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 0}
        found = await self._answer("/v1/completions", body)
        try:
            scores = [float(one) for one in found["choices"][0]["logprobs"]["token_logprobs"][1:]]
        except (KeyError, IndexError, TypeError, ValueError):
            scores = []
        if len(scores) != len(ids) - 1:
            raise ProtocolError(f"{self._address} did not give the log-probability of every token")
        return scores

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _order(self, path: str, body: dict[str, Any]) -> None:
        async with self._send("POST", path, json=body) as response:
            if response.status_code != 200:
                raise error_of_response(response, await response.aread(), "")

    async def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._json("POST", path, json={key: one for key, one in body.items() if one is not None})

    async def _ok(self, path: str) -> bool:
        async with self._send("GET", path) as response:
            if response.status_code in {401, 403}:
                raise error_of_response(response, await response.aread(), "")
            return response.status_code == 200

    async def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        async with self._send(method, path, **content) as response:
            body = await response.aread()
        if response.status_code != 200:
            raise error_of_response(response, body, "")
        decoded = _decode(body, "")
        if not isinstance(decoded, dict):
            raise ProtocolError(f"{self._address}{path} answered with something other than a JSON object")
        return decoded

    @asynccontextmanager
    async def _send(self, method: str, path: str, **content: Any) -> AsyncIterator[httpx2.Response]:
        """One exchange; whatever httpx2 raises within it leaves as an error of ours."""
        request_id = content.get("headers", {}).get("X-Request-Id", "")
        try:
            async with self._http.stream(method, path, **content) as response:
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            wrong = await wrong_protocol(self._address) if self._address.scheme == "https" else None
            raise wrong or ConnectError(f"no server answers at {self._address}: {_reason(error)}") from error
        except httpx2.TimeoutException as error:
            raise DeadlineError(f"{self._address} took too long", request_id=request_id) from error
        except httpx2.UnsupportedProtocol as error:
            raise invalid(f"{self._address} is not an HTTP address: {error}") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            is_odd = isinstance(error, httpx2.RemoteProtocolError)
            wrong = await wrong_protocol(self._address) if is_odd else None
            message = f"the connection to {self._address} broke: {_reason(error)}"
            raise wrong or ConnectionLostError(message, request_id=request_id) from error


def _control_of(model: str, verb: str) -> tuple[str, dict[str, Any]]:
    """Triton's path of a load or unload, and its body."""
    name, _, version = model.partition("@")
    path = f"/v2/repository/models/{quote(name, safe='')}/{verb}"
    return path, {"parameters": {"version": version}} if version else {}


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _body(request: GenerateRequest, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {} if request.model is None else {"model": request.model}
    fields = sampling_fields(request)
    if request.messages is None:
        body["prompt"] = request.text
    else:
        body["messages"] = message_fields(request)
        if "logprobs" in fields:
            fields["top_logprobs"] = fields["logprobs"]
            fields["logprobs"] = True
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | fields


async def _chunks(response: httpx2.Response, request_id: str) -> AsyncGenerator[Chunk, None]:
    finished = False
    async with aclosing(_events(response)) as events:
        async for data in events:
            if data == "[DONE]":
                return
            chunk = _chunk(_decode(data, request_id), request_id)
            finished = finished or chunk.finish_reason is not None
            yield chunk
    if not finished:
        message = "the server ended the stream before the answer was complete"
        raise ConnectionLostError(message, request_id=request_id)


async def _events(response: httpx2.Response) -> AsyncGenerator[str, None]:
    decoder = EventDecoder()
    async for received in response.aiter_bytes():
        for data in decoder.feed(received):
            yield data
    for data in decoder.finish():
        yield data


def _decode(body: bytes | str, request_id: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        message = f"the server sent something other than JSON: {error}"
        raise ProtocolError(message, request_id=request_id) from None


def _chunk(body: Any, request_id: str) -> Chunk:
    """One completion, chat completion, or piece of either."""
    if isinstance(body, dict) and "error" in body:
        raise error_of_body(body, 500, request_id)
    try:
        choices = body["choices"]
        choice = choices[0] if choices else {}
        part = choice.get("message") or choice.get("delta") or choice
        usage = body.get("usage")
        return Chunk(
            text=part.get("text") or part.get("content") or "",
            finish_reason=choice.get("finish_reason"),
            usage=_usage(usage) if usage else None,
            model=body.get("model") or "",
            logprobs=_scores(choice.get("logprobs")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"the server's answer lacks {error}", request_id=request_id) from None


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(usage["prompt_tokens"], usage["completion_tokens"], details.get("cached_tokens") or 0)


def _scores(logprobs: dict[str, Any] | None) -> tuple[TokenScore, ...]:
    """Both of OpenAI's forms: the chat's list of objects, the completions' parallel lists."""
    if not logprobs:
        return ()
    if "content" in logprobs:
        return tuple(
            TokenScore(
                entry["token"],
                entry["logprob"],
                tuple((rival["token"], rival["logprob"]) for rival in entry.get("top_logprobs") or ()),
            )
            for entry in logprobs["content"] or ()
        )
    tops = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
    triples = zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    return tuple(TokenScore(token, value, tuple((top or {}).items())) for token, value, top in triples)


def _card(entry: dict[str, Any], lengths: dict[str, int | None]) -> ModelCard:
    name = entry["name"]
    version = entry.get("version") or ""
    return ModelCard(
        name=name,
        version=version,
        state=entry.get("state") or UNAVAILABLE,
        reason=entry.get("reason") or "",
        context_len=lengths.get(name) or lengths.get(f"{name}@{version}"),
    )
