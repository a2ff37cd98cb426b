"""``client load`` and ``client unload``: which models and adapters the server has ready."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from client.cli.options import Connection, connection_options
from client.cli.terminal import note
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from client.results import ModelCard


@click.command(
    epilog="\b\nExamples:\n  client load telechat2_tiny\n"
    "  client load telechat2_tiny --adapter pirate=./pirate\n  client generate -m pirate 你好"
)
@click.argument("model")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=FOLDER",
    help="A LoRA adapter that the loaded model serves besides, under this name; the server reads the folder. "
    "Repeatable.",
)
@connection_options
def load(*, connection: Connection, model: str, adapters: Sequence[str]) -> None:
    """Load or reload MODEL, or an adapter beside it. Waits until it is ready."""
    named = [_adapter(text) for text in adapters]
    with connection.open() as client:
        if not named:
            client.load(model)
            note(f"{model} is ready")
        for name, folder in named:
            client.load(model, (name, folder))
            note(f"{name} is ready, an adapter of {model}")


@click.command(
    epilog="\b\nExamples:\n  client unload telechat2_tiny\n  client unload --adapter pirate",
)
@click.argument("model", required=False)
@click.option("--adapter", "adapters", multiple=True, metavar="NAME", help="An adapter instead. Repeatable.")
@connection_options
def unload(*, connection: Connection, model: str | None, adapters: Sequence[str]) -> None:
    """Serve MODEL, or an adapter, no longer. Its running requests finish first."""
    if (model is None) == (not adapters):
        raise click.UsageError("name a MODEL or an --adapter")
    with connection.open() as client:
        for name in adapters:
            client.unload_adapter(name)
            note(f"{name} is no longer served")
        if model is not None:
            _check_known(model, client.models())
            client.unload(model)
            note(f"{model} is unloaded")


def _check_known(model: str, cards: Sequence[ModelCard]) -> None:
    """To unload a model that is not there is no error in Triton's protocol."""
    named = [card for card in cards if card.name == model.partition("@")[0]]
    if not named:
        hint = "list the models with: client models"
        raise Fault(FaultKind.NOT_FOUND, f"the server has no model {model!r}", hint)
    if all(card.parent for card in named):
        message = f"{model} is an adapter of {named[0].parent}"
        raise Fault(FaultKind.INVALID_REQUEST, message, f"say: client unload --adapter {model}")


def _adapter(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        message = f"--adapter takes NAME=FOLDER; got {text!r}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "for example --adapter pirate=./pirate")
    return name, str(Path(folder).absolute())
