"""``client generate``: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from client.cli.options import Connection, connection_options, sampling_options
from client.cli.terminal import ReaderGone, note, statistics, write

if TYPE_CHECKING:
    from client.blocking import Client, Stream
    from client.options import OptionFields
    from client.results import Answer

_EPILOG = """\b
Examples:
  client generate "生抽与老抽的区别？"
  client generate -m telechat2_tiny --max-tokens 64 --temperature 0 "你好"
  echo "你好" | client generate --grpc 127.0.0.1:8001 -m telechat2_tiny
  client generate --raw "从前有座山，"
  client generate --json "你好" | jq -r .text
  client generate --json --stream "你好"      one JSON object a line, the last with "type": "answer"
"""


@click.command(epilog=_EPILOG)
@click.argument("prompt", required=False)
@click.option("-m", "--model", metavar="MODEL", help="NAME or NAME@VERSION; default: the server's.")
@click.option("--system", metavar="TEXT", help="What the model is told before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--stream/--no-stream", default=None, help="Print text as it comes; default on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option("--logprobs", type=int, metavar="N", help="With --json: log-probabilities and N rivals each.")
@sampling_options
@connection_options
@click.option("-v", "--verbose", is_flag=True, help="Statistics on stderr, also when it is no terminal.")
def generate(  # noqa: PLR0913 - the options of a command
    *,
    connection: Connection,
    prompt: str | None,
    model: str | None,
    system: str | None,
    raw: bool,
    stream: bool | None,
    as_json: bool,
    logprobs: int | None,
    sampling: OptionFields,
    verbose: bool,
) -> None:
    """Answer PROMPT. If it is missing or -, the prompt is what stands on standard input."""
    if raw and system is not None:
        raise click.UsageError("--system needs the chat template, which --raw leaves out")
    streamed = stream if stream is not None else sys.stdout.isatty() and not as_json
    options: OptionFields = {**sampling, "model": model, "logprobs": logprobs}
    question = Question(read_prompt(prompt), system, raw, options)
    with connection.open() as client:
        if streamed:
            with question.stream(client) as chunks:
                answer = show_stream(chunks, as_json=as_json)
        else:
            answer = question.answer(client)
            write(json_line(answer.to_dict()) if as_json else _ended(answer.text))
    if verbose or (sys.stderr.isatty() and not as_json):
        note(statistics(answer), dim=True)
    if verbose:
        note(f"request {answer.request_id}", dim=True)


class Question(msgspec.Struct, frozen=True):
    prompt: str
    system: str | None
    raw: bool
    options: OptionFields

    def stream(self, client: Client) -> Stream:
        if self.raw:
            return client.stream(self.prompt, raw=True, **self.options)
        return client.stream_chat(self._messages(), **self.options)

    def answer(self, client: Client) -> Answer:
        if self.raw:
            return client.generate(self.prompt, raw=True, **self.options)
        return client.chat(self._messages(), **self.options)

    def _messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]


def read_prompt(argument: str | None) -> str:
    """The prompt from the command line, or from standard input. Raises ``UsageError`` unless it is text."""
    if argument is not None and argument != "-":
        prompt = argument
    elif argument is None and sys.stdin.isatty():
        raise click.UsageError('there is no prompt: client generate "..."')
    else:
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            message = f"the prompt on standard input is not UTF-8: byte {error.start} cannot be decoded"
            raise click.UsageError(f"{message}; convert it first, as with: iconv -t UTF-8") from None
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def show_stream(chunks: Stream, *, as_json: bool = False) -> Answer:
    """Write chunks as they come; the line is ended even if the answer breaks off."""
    last = "\n"
    try:
        for chunk in chunks:
            if as_json and (chunk.text or chunk.logprobs):
                write(json_line({"type": "chunk", **msgspec.to_builtins(chunk)}))
            elif chunk.text:
                write(chunk.text)
                last = chunk.text[-1]
    except ReaderGone:
        raise
    except BaseException:
        write("" if last == "\n" else "\n")
        raise
    answer = chunks.answer()
    write(json_line({"type": "answer", **answer.to_dict()}) if as_json else "" if last == "\n" else "\n")
    return answer


def json_line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
