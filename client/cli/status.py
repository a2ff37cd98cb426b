"""``client models`` and ``client health``: what the server has, and whether it is ready."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec

from client.cli.generate import json_line
from client.cli.options import Connection, connection_options
from client.cli.terminal import note, paint, write

if TYPE_CHECKING:
    from client.results import Health, ModelCard

_COLOURS = {"READY": "green", "LOADING": "yellow", "UNLOADING": "yellow", "UNAVAILABLE": "red"}
_NOT_READY = 5


@click.command(epilog="\b\nExamples:\n  client models\n  client models --json | jq -r '.[].name'")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@connection_options
def models(*, connection: Connection, as_json: bool) -> None:
    """List every version of every model, with its state."""
    with connection.open() as client:
        cards = client.models()
    if as_json:
        write(json_line(msgspec.to_builtins(cards)))
        return
    if not cards:
        note("the server has no models; package one with: builder package --model NAME")
        return
    rows = [("MODEL", "VERSION", "STATE", "CONTEXT"), *(_row(card) for card in cards)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    reasons = ["", *(f"an adapter of {card.parent}" if card.parent else card.reason for card in cards)]
    for row, reason in zip(rows, reasons, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[2] = paint(cells[2], sys.stdout, fg=_COLOURS.get(row[2]))
        write("  ".join([*cells, reason]).rstrip() + "\n")


@click.command(epilog="\b\nExamples:\n  client health\n  client health -m telechat2_tiny --wait 60")
@click.option("-m", "--model", metavar="MODEL", help="Ask for one model instead of the whole server.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait until ready.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@connection_options
def health(*, connection: Connection, model: str | None, wait_s: float | None, as_json: bool) -> int:
    """Tell whether the server, or one model, is ready. Exits with 0 if it is, else with 5."""
    with connection.open() as client:
        found = client.health(model) if wait_s is None else client.wait_ready(wait_s, model)
        if not found.ok and not as_json:
            # Says which model there is not, or why it is not ready.
            found = client.wait_ready(0, model)
    if as_json:
        write(json_line({**msgspec.to_builtins(found), "ok": found.ok}))
    else:
        write(_sentence(found, connection.url) + "\n")
    return 0 if found.ok else _NOT_READY


def _row(card: ModelCard) -> tuple[str, str, str, str]:
    return card.name, card.version, card.state, "" if card.context_len is None else str(card.context_len)


def _sentence(found: Health, url: str) -> str:
    state = "ready" if found.ready else "live, not ready" if found.live else "not live"
    server = f"{found.server or 'the server'} at {url} is {state}"
    if found.model is None:
        return server
    return f"{found.model} is {'ready' if found.model_ready else 'not ready'}; {server}"
