"""Where output goes and how: text to stdout as it comes, notes to stderr, colours on a terminal only."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Any, TextIO

import click

from client.results import Answer
from contract.faults import Fault

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Everything that could steer a terminal, except tab and line feed."""


class ReaderGone(Exception):  # noqa: N818 - not an error: the pipe's reader has what it wanted
    """Whoever read our stdout has closed it."""


def settle_output() -> None:
    """A character that the terminal's encoding lacks becomes a question mark instead of a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def write(text: str) -> None:
    """Text to stdout, at once. On a terminal, control characters of the model's making are left out."""
    if sys.stdout.isatty():
        text = _CONTROLS.sub("", text)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from None


def note(text: str, **style: Any) -> None:
    """A line to stderr, styled if it is a terminal."""
    click.echo(paint(text, sys.stderr, **style), err=True)


def paint(text: str, stream: TextIO, **style: Any) -> str:
    coloured = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, **style) if coloured else text


def fail(fault: Fault) -> None:
    """A fault as one sentence, and what to do about it."""
    click.echo(f"{paint('error:', sys.stderr, fg='red', bold=True)} {fault.message}", err=True)
    if fault.hint:
        click.echo(f"{paint('hint:', sys.stderr, fg='cyan')} {fault.hint}", err=True)


def statistics(answer: Answer) -> str:
    """What one wants to know of an answer beside its text, in a line."""
    parts = [answer.model] if answer.model else []
    if answer.usage is not None:
        parts.append(f"{answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens")
    if answer.tokens_per_s is not None:
        parts.append(f"first after {answer.timings.first_token_s:.2f} s")
        parts.append(f"{answer.tokens_per_s:.1f} tokens/s")
    parts.append(f"{answer.timings.total_s:.2f} s")
    parts.append(f"finished: {answer.finish_reason}")
    return " · ".join(parts)
