"""``client chat``: a conversation on a terminal, or one turn a line in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from client.cli.conversation import SETTABLE, Conversation
from client.cli.generate import show_stream
from client.cli.options import Connection, connection_options, sampling_options
from client.cli.terminal import fail, note, statistics, write
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from client.blocking import Client
    from client.options import OptionFields

_HELP = """\
/system TEXT      what the model is told before the chat; without TEXT: nothing
/set NAME VALUE   an option, as in: /set temperature 0.7   (default unsets it)
/show             model, options and length of the chat
/retry            the last answer again
/undo             forget the last turn
/clear            forget all turns
/save FILE        the chat as JSON
/bye              end; so does Ctrl-D
A message of several lines stands between two lines of \"\"\". Ctrl-C stops an answer."""

_EPILOG = """\b
Examples:
  client chat -m telechat2_tiny --temperature 0.7
  client chat --system "用一句话回答"
  printf '你好\\n/retry\\n' | client chat
"""

_QUOTES = '"""'


@click.command(epilog=_EPILOG)
@click.option("-m", "--model", metavar="MODEL", help="NAME or NAME@VERSION; default: the server's.")
@click.option("--system", metavar="TEXT", help="What the model is told before the chat.")
@sampling_options
@connection_options
@click.option("-v", "--verbose", is_flag=True, help="Statistics on stderr, also when it is no terminal.")
def chat(
    *, connection: Connection, model: str | None, system: str | None, sampling: OptionFields, verbose: bool
) -> None:
    """Talk with a model. /help lists what can be done; in a pipe, each line is a turn."""
    interactive = sys.stdin.isatty()
    conversation = Conversation({**sampling, "model": model}, system)
    with connection.open() as client:
        repl = Repl(client, conversation, interactive=interactive, verbose=verbose or sys.stderr.isatty())
        if interactive:
            note("/help lists the commands, /bye ends", dim=True)
        repl.run()


class Repl:
    """Reads messages and commands until the end of input."""

    def __init__(
        self, client: Client, conversation: Conversation, *, interactive: bool, verbose: bool
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._interactive = interactive
        self._verbose = verbose
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: note(_HELP),
            "/?": lambda _: note(_HELP),
            "/system": self._system,
            "/set": self._set,
            "/show": self._show,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": self._save,
        }

    def run(self) -> None:
        """Faults are told and survived on a terminal; in a pipe they end the program."""
        read = read_typed if self._interactive else read_piped
        while (text := read()) is not None and text.strip() not in {"/bye", "/exit", "/quit"}:
            if not text.strip():
                continue
            try:
                self._take(text)
            except Fault as fault:
                if not self._interactive:
                    raise
                fail(fault)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                note("stopped; this turn is not kept", dim=True)

    def _take(self, text: str) -> None:
        word, _, rest = text.strip().partition(" ")
        if not word.startswith("/") or "\n" in text:
            self._ask(text)
        elif word in self._commands:
            self._commands[word](rest.strip())
        else:
            raise Fault(FaultKind.INVALID_REQUEST, f"there is no command {word}", "/help lists them")

    def _ask(self, question: str) -> None:
        conversation = self._conversation
        with self._client.stream_chat(conversation.messages(question), **conversation.options) as chunks:
            answer = show_stream(chunks)
        conversation.add(question, answer.text)
        if self._verbose:
            note(statistics(answer), dim=True)

    def _system(self, text: str) -> None:
        self._conversation.system = text or None

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not name or not value:
            hint = f"names: {', '.join(SETTABLE)}"
            raise Fault(FaultKind.INVALID_REQUEST, "write: /set NAME VALUE", hint)
        self._conversation.set(name, value.strip())

    def _show(self, _: str) -> None:
        conversation = self._conversation
        note(f"server       {self._client.address}")
        if conversation.system:
            note(f"system       {conversation.system}")
        for name, value in conversation.options.items():
            note(f"{name:<12} {value}")
        note(f"turns        {len(conversation)}")

    def _retry(self, _: str) -> None:
        turn = self._conversation.undo()
        if turn is None:
            raise Fault(FaultKind.INVALID_REQUEST, "there is no answer yet to try again", "ask first")
        try:
            self._ask(turn[0])
        except BaseException:
            self._conversation.add(*turn)
            raise

    def _undo(self, _: str) -> None:
        if self._conversation.undo() is None:
            raise Fault(FaultKind.INVALID_REQUEST, "there is no turn to forget", "ask first")

    def _clear(self, _: str) -> None:
        self._conversation.clear()

    def _save(self, name: str) -> None:
        if not name:
            raise Fault(FaultKind.INVALID_REQUEST, "write: /save FILE")
        path = Path(name).expanduser()
        try:
            self._conversation.save(path)
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "write: /save ANOTHER_FILE") from None
        note(f"saved {path}", dim=True)


def read_typed() -> str | None:
    """A message from the terminal, with line editing; ``None`` at its end."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines once it is imported
    try:
        text = input(">>> ")
        if not text.startswith(_QUOTES):
            return text
        lines = [text.removeprefix(_QUOTES)]
        while not lines[-1].endswith(_QUOTES):
            lines.append(input("... "))
        lines[-1] = lines[-1].removesuffix(_QUOTES)
        return "\n".join(lines).strip()
    except EOFError:
        write("\n")
        return None
    except KeyboardInterrupt:
        write("\n")
        note("/bye or Ctrl-D ends the chat", dim=True)
        return ""


def read_piped() -> str | None:
    """The next line of standard input, or the lines between quotes; ``None`` at its end."""
    line = _line()
    if line is None or not line.startswith(_QUOTES):
        return line
    lines = [line.removeprefix(_QUOTES)]
    while not lines[-1].endswith(_QUOTES) and (line := _line()) is not None:
        lines.append(line)
    lines[-1] = lines[-1].removesuffix(_QUOTES)
    return "\n".join(lines).strip()


def _line() -> str | None:
    received = sys.stdin.buffer.readline()
    if not received:
        return None
    try:
        return received.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        message = f"standard input is not UTF-8: byte {error.start} of a line cannot be decoded"
        raise Fault(FaultKind.INVALID_REQUEST, message, "convert it first, as with: iconv -t UTF-8") from None
