"""Sends generate requests to a MindPort daemon, over HTTP and gRPC, from a shell or from Python.

>>> from client import Client
>>> with Client() as client:
...     for chunk in client.stream("生抽与老抽的区别？"):
...         print(chunk.text, end="", flush=True)

Names are loaded when they are first used, so that ``client --help`` starts no HTTP library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.aio import AsyncClient
    from client.blocking import Client, Stream
    from client.errors import (
        CancelledByServerError,
        ClientError,
        ConnectError,
        ConnectionLostError,
        ContextOverflowError,
        DeadlineError,
        ForbiddenError,
        InvalidRequestError,
        ModelNotFoundError,
        NotReadyError,
        OverloadedError,
        ProtocolError,
        RequestError,
        ServerError,
        UnauthenticatedError,
    )
    from client.options import OptionFields, Options
    from client.results import Answer, Chunk, Health, ModelCard, Timings, TokenScore
    from client.streams import AsyncStream

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "CancelledByServerError",
    "Chunk",
    "Client",
    "ClientError",
    "ConnectError",
    "ConnectionLostError",
    "ContextOverflowError",
    "DeadlineError",
    "ForbiddenError",
    "Health",
    "InvalidRequestError",
    "ModelCard",
    "ModelNotFoundError",
    "NotReadyError",
    "OptionFields",
    "Options",
    "OverloadedError",
    "ProtocolError",
    "RequestError",
    "ServerError",
    "Stream",
    "Timings",
    "TokenScore",
    "Tokens",
    "UnauthenticatedError",
]

_HOMES = ("aio", "blocking", "errors", "options", "perplexity", "results", "streams")


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"client.{home}")
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module 'client' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
