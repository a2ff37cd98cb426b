"""``client perplexity``: how well one model or several foresee a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from client.cli.generate import json_line
from client.cli.options import Connection, connection_options
from client.cli.terminal import note, write

if TYPE_CHECKING:
    from client.blocking import Client
    from client.perplexity import Passage, Perplexity, Piece

_AT_A_TIME = 8
_WINDOW = 512
_EPILOG = """\b
Examples:
  client perplexity -m telechat2_tiny --text book.txt
  client perplexity -m qwen -m qwen_int4 --text wiki.txt --window 2048
  client perplexity -m qwen --text answers.jsonl      lines of {"prompt": "...", "completion": "..."}
"""


@click.command(epilog=_EPILOG)
@click.option(
    "-m", "--model", "models", multiple=True, required=True, metavar="MODEL", help="NAME; repeatable."
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    required=True,
    help="A text file, or a .jsonl of prompts and completions, whose completions count.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    default=_WINDOW,
    show_default=True,
    help="Tokens at a time; every one but the first has half as many before it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@connection_options
def perplexity(
    *, connection: Connection, models: Sequence[str], text: Path, window: int, as_json: bool
) -> None:
    """Measure how well models foresee a text. Of several, says how much worse each is than the first."""
    from client.perplexity import read_pieces

    pieces = read_pieces(text)
    with connection.open() as client:
        found = [_measured(client, model, pieces, window) for model in models]
    if as_json:
        write(json_line(msgspec.to_builtins(found)))
        return
    if len({one.tokens for one in found}) > 1:
        note("the models split the text into different tokens: their perplexities are not comparable")
    rows = [("MODEL", "TOKENS", "PERPLEXITY", "CHANGE"), *(_row(one, found[0]) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        write("  ".join(cells).rstrip() + "\n")


def _measured(client: Client, model: str, pieces: Sequence[Piece], window: int) -> Perplexity:
    from client.perplexity import perplexity as of_scores

    def score(passage: Passage) -> list[float]:
        return client.score(passage.ids, model=model)[passage.first - 1 :]

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        split = pool.map(lambda piece: list(_passages(client, model, piece, window)), pieces)
        parts = pool.map(score, [passage for passages in split for passage in passages])
        return of_scores(model, (one for part in parts for one in part))


def _passages(client: Client, model: str, piece: Piece, window: int) -> Iterator[Passage]:
    from client.perplexity import passages

    prompt = client.tokenize(piece.prompt, model=model).ids if piece.prompt else ()
    whole = client.tokenize(piece.prompt + piece.completion, model=model)
    # The server makes one more token, which nobody sees.
    longest = max(2, min(window, (whole.context_len or window + 1) - 1))
    yield from passages(prompt, whole.ids, longest)


def _row(found: Perplexity, first: Perplexity) -> tuple[str, str, str, str]:
    change = "" if found is first else f"{found.perplexity / first.perplexity - 1:+.3%}"
    return found.model, str(found.tokens), f"{found.perplexity:.5g}", change
