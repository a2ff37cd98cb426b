"""Options that several commands share, gathered into one object each."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from client.blocking import Client

Command = Callable[..., Any]

_HTTP, _GRPC = "http", "grpc"
_DEFAULT = "default"
"""Stands for an address option that was given without an address."""


class Connection(msgspec.Struct, frozen=True):
    """Where to send requests, and how patiently."""

    url: str
    api_key: str | None
    timeout_s: float | None

    def open(self) -> Client:
        from client.blocking import Client

        return Client(self.url, api_key=self.api_key, timeout_s=self.timeout_s)


_CONNECTION_OPTIONS = (
    click.option("--url", metavar="URL", help="http://HOST:PORT or grpc://HOST:PORT  [env: MINDPORT_URL]"),
    click.option(
        "--http",
        is_flag=False,
        flag_value=_DEFAULT,
        metavar="[ADDR]",
        help="Speak HTTP, to 127.0.0.1:1025 if no address follows.",
    ),
    click.option(
        "--grpc",
        is_flag=False,
        flag_value=_DEFAULT,
        metavar="[ADDR]",
        help="Speak gRPC, to 127.0.0.1:8001 if no address follows.",
    ),
    click.option("--api-key", envvar="MINDPORT_API_KEY", metavar="KEY", help="[env: MINDPORT_API_KEY]"),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="For a whole answer; default: no limit.",
    ),
)

_SAMPLING_OPTIONS = {
    "max_tokens": click.option(
        "--max-tokens", type=int, metavar="N", help="At most so many; default: all that fit."
    ),
    "temperature": click.option(
        "--temperature", type=float, metavar="T", help="0 takes the likeliest token each time."
    ),
    "top_k": click.option("--top-k", type=int, metavar="K", help="Choose among the K likeliest."),
    "top_p": click.option(
        "--top-p", type=float, metavar="P", help="Choose among the likeliest that sum up to P."
    ),
    "repetition_penalty": click.option("--repetition-penalty", type=float, metavar="X", help="1 is off."),
    "presence_penalty": click.option("--presence-penalty", type=float, metavar="X", help="0 is off."),
    "frequency_penalty": click.option("--frequency-penalty", type=float, metavar="X", help="0 is off."),
    "seed": click.option("--seed", type=int, metavar="N", help="The same seed chooses the same tokens."),
    "stop": click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable."),
    "priority": click.option(
        "--priority", type=int, metavar="N", help="Smaller is more urgent; 0 is normal, and the default."
    ),
    "ignore_eos": click.option("--ignore-eos", is_flag=True, help="Go on after the model's end token."),
}


def connection_options(command: Command) -> Command:
    """The options of a connection; the command gets them as ``connection``.

    ``--http "a prompt"`` reads the prompt as the address: it is handed back as ``prompt`` if there is none.
    """

    @functools.wraps(command)
    def with_connection(*, url: str | None, http: str | None, grpc: str | None, **rest: Any) -> Any:
        given = [(name, value) for name, value in ((_HTTP, http), (_GRPC, grpc)) if value is not None]
        if len(given) + (url is not None) > 1:
            raise click.UsageError("give one of --url, --http and --grpc")
        if given:
            url, prompt = _address(*given[0])
            if prompt is not None:
                if rest.get("prompt", "") is not None:
                    raise click.UsageError(f"{prompt!r} is not an address: write HOST:PORT")
                rest["prompt"] = prompt
        url = url or os.environ.get("MINDPORT_URL") or _default(_HTTP)
        connection = Connection(url, rest.pop("api_key"), rest.pop("timeout"))
        return command(connection=connection, **rest)

    return _with(with_connection, _CONNECTION_OPTIONS)


def sampling_options(command: Command) -> Command:
    """The options of sampling; the command gets what was set as ``sampling``."""

    @functools.wraps(command)
    def with_sampling(**rest: Any) -> Any:
        given = {name: rest.pop(name) for name in _SAMPLING_OPTIONS}
        unset = (None, (), False)
        # By identity, because 0 and 0.0 are values to send.
        sampling = {name: value for name, value in given.items() if not any(value is no for no in unset)}
        return command(sampling=sampling, **rest)

    return _with(with_sampling, tuple(_SAMPLING_OPTIONS.values()))


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _default(scheme: str) -> str:
    from client.address import DEFAULT_GRPC, DEFAULT_HTTP

    return DEFAULT_GRPC if scheme == _GRPC else DEFAULT_HTTP


def _address(scheme: str, text: str) -> tuple[str, str | None]:
    """The URL of ``--http`` or ``--grpc``, and the prompt if that was taken for the address."""
    from client.address import looks_like_address

    if text == _DEFAULT:
        return _default(scheme), None
    if not looks_like_address(text):
        return _default(scheme), text
    if "://" not in text:
        return f"{scheme}://{text}", None
    if not text.startswith(scheme):
        raise click.UsageError(f"--{scheme} {text}: the address is of another protocol, give it with --url")
    return text, None
