"""The program ``client``: a generate request, a chat, and what the server has, from a shell.

Answers and JSON go to stdout, everything else to stderr. Exit codes are the contract's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from client.cli.chat import chat
from client.cli.control import load, unload
from client.cli.generate import generate
from client.cli.perplexity import perplexity
from client.cli.status import health, models
from client.cli.terminal import ReaderGone, fail, settle_output
from contract.faults import Fault, FaultKind

_EPILOG = """\b
Examples:
  client generate "生抽与老抽的区别？"
  client generate -m telechat2_tiny --max-tokens 64 --json "你好" | jq .text
  client generate --grpc -m telechat2_tiny < prompt.txt
  client chat --system "用一句话回答"
  client health --wait 60
  client perplexity -m telechat2_tiny --text book.txt
  client load telechat2_tiny --adapter pirate=./pirate

\b
Environment:
  MINDPORT_URL      the server, http://127.0.0.1:1025 if not set
  MINDPORT_API_KEY  the key, if the server asks for one
  NO_COLOR          no colours
"""


@click.group(
    epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="mindport", prog_name="client")
def program() -> None:
    """Send requests to a MindPort daemon, over HTTP or gRPC."""


for _command in (generate, chat, models, health, load, unload, perplexity):
    program.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    settle_output()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its core logs to stderr, we say in our words
    try:
        code = program.main(args=arguments, prog_name="client", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        _tell(error)
        return error.exit_code
    except ReaderGone:
        return 0
    except Fault as fault:
        fail(fault)
        return fault.exit_code
    except Exception as error:
        if os.environ.get("MINDPORT_DEBUG"):
            raise
        click.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
        click.echo("hint: please report this, with the output under MINDPORT_DEBUG=1", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _tell(error: click.ClickException) -> None:
    """A mistake on the command line, in the shape of all our errors."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "client"
    fail(Fault(FaultKind.INVALID_REQUEST, error.format_message().rstrip("."), f"see: {command} --help"))


def main() -> NoReturn:
    sys.exit(run())
