"""The ``builder`` command line: options in, use cases called, results printed. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder.convert_command import convert
from contract.faults import Fault, FaultKind

if TYPE_CHECKING:
    from builder.package import Order

REPOSITORY_VARIABLE = "MINDPORT_REPOSITORY"
_PATH = click.Path(path_type=Path)
_DTYPES = ("bfloat16", "float16", "float32")


def _with_examples(*lines: str) -> Callable[[click.Command], click.Command]:
    """Show these lines as they are at the end of a command's help."""

    def add(command: click.Command) -> click.Command:
        command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
        return command

    return add


def _json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(function)


def _source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--yaml", type=_PATH, help="The mindformers predict_*.yaml."),
        click.option("--tokenizer", type=_PATH, help="tokenizer.model, tokenizer.json or their folder."),
        click.option(
            "--weights", type=_PATH, help="Folder or file with the weights, of any form that convert reads."
        ),
    ):
        function = option(function)
    return function


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader has what it wanted; click would call that a failure
            _close_output()
            return None


def _close_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mindport", prog_name="builder")
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
def cli(debug: bool) -> None:
    """Make model directories that the daemon and other engines serve.

    Exit codes: 0 done, 1 unexpected or findings remain, 2 usage or invalid input, 4 not found, 6 refused,
    7 verification failed, 130 interrupted.
    """


@_with_examples("builder list", "builder list --json")
@cli.command("list")
@_json_option
def list_command(as_json: bool) -> None:
    """The models the builder knows. Says whether their sources are there."""
    from builder.listing import list_recipes
    from builder.report import print_json, say

    entries = list_recipes()
    if as_json:
        print_json({"recipes": entries})
        return
    for entry in entries:
        state = "ready to package" if entry["sources_present"] else f"sources belong in {entry['sources']}"
        say(f"{entry['name']:20} {entry['title']:20} {state}")


@_with_examples(
    "builder package --model telechat2_tiny",
    "builder package --model telechat2_7b --weights W --tokenizer W/tokenizer.model",
    "builder package --model telechat2_7b --yaml my_predict.yaml --dtype bfloat16",
    "builder package --model ./Qwen2.5-0.5B-Instruct --quantize int4",
    "builder package --model ./Qwen2.5-0.5B-Instruct --adapter ./lora --name my_assistant",
    "builder package --model ./Qwen2.5-0.5B-Instruct --with-adapter pirate=./lora",
    "builder package --model my_recipe.yaml --out /srv/models --link",
)
@cli.command()
@click.option(
    "--model",
    required=True,
    help="A known model (see: builder list), a HuggingFace folder, or the path of a recipe.yaml.",
)
@click.option("--name", help="Name in the repository.  [default: the recipe's or the folder's]")
@_source_options
@click.option(
    "--out",
    type=_PATH,
    envvar=REPOSITORY_VARIABLE,
    show_envvar=True,
    default=Path("model_repository"),
    show_default=True,
    help="The model repository.",
)
@click.option("--version", type=click.IntRange(min=1), help="Version number.  [default: highest + 1]")
@click.option("--replace", is_flag=True, help="Overwrite the version if it exists.")
@click.option("--dtype", type=click.Choice(_DTYPES), help="Convert the weights.  [default: as they are]")
@click.option(
    "--quantize",
    type=click.Choice(("int8", "int4")),
    help="Store the linear layers as integers that other engines read too; int4 leaves the head.",
)
@click.option(
    "--group-size",
    type=click.Choice(("32", "64", "128")),
    callback=lambda context, parameter, value: int(value) if value else None,
    help="Weights that share a scale.  [default: 64, by which the demo model's layers change by "
    "0.6 % in int8 and 9.5 % in int4]",
)
@click.option(
    "--clip-search",
    is_flag=True,
    help="With --quantize: try many scales for each group and keep the one with the least squared error.",
)
@click.option(
    "--report", type=_PATH, help="With --quantize: write every layer's relative error to this JSON file."
)
@click.option("--adapter", type=_PATH, help="A LoRA adapter's folder or file, to merge into the weights.")
@click.option(
    "--with-adapter",
    "with_adapters",
    metavar="NAME=PATH",
    multiple=True,
    callback=lambda context, parameter, values: dict(_named_path(value) for value in values),
    help="An adapter to serve beside the weights under a name of its own; can be repeated.",
)
@click.option(
    "--adapter-alpha",
    type=click.FloatRange(min=0, min_open=True),
    help="lora_alpha of adapters that do not say theirs.",
)
@click.option("--link", is_flag=True, help="Hard-link the weights instead of copying them.")
@click.option(
    "--allow-nonfinite", is_flag=True, help="Keep infinite and NaN weights; without, they are refused."
)
@click.option("--dry-run", is_flag=True, help="Check everything, show the plan, write nothing.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notes.")
@_json_option
def package(quiet: bool, as_json: bool, **options: Any) -> None:
    """Turn yaml, weights and tokenizer into a model directory."""
    from builder.package import package as run
    from builder.progress import Progress
    from builder.report import package_dict, print_json, print_package

    result = run(_order(options), Progress(quiet or as_json))
    if as_json:
        print_json(package_dict(result))
    else:
        print_package(result, quiet)


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not path:
        raise click.BadParameter(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def _order(options: dict[str, Any]) -> Order:
    from builder.package import Order
    from builder.sources import Requested

    sources = ("weights", "tokenizer", "yaml", "adapter", "with_adapters", "adapter_alpha")
    requested = Requested(**{name: options.pop(name) for name in sources})
    return Order(requested=requested, **options)


@_with_examples(
    "builder check telechat2_7b",
    "builder check telechat2_7b --weights W --kv-memory 16",
    "builder check model_repository/telechat2_7b/1",
)
@cli.command()
@click.argument("subject", metavar="MODEL|DIR")
@_source_options
@click.option(
    "--kv-memory",
    type=click.FloatRange(min=0.01),
    default=8.0,
    show_default=True,
    help="GiB of key/value cache.",
)
@click.option(
    "--block-size",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Tokens of a cache block.",
)
@click.option(
    "--world-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Devices that share the heads.",
)
@_json_option
def check(subject: str, as_json: bool, **options: Any) -> None:
    """Check a model's sources, or a model directory. Forecasts its memory, and writes nothing."""
    from builder.check import check_directory, check_sources, is_model_directory
    from builder.forecast import Budget
    from builder.sources import Requested

    budget = Budget(int(options["kv_memory"] * 2**30), options["block_size"], options["world_size"])
    if is_model_directory(Path(subject)):
        check_directory(Path(subject), budget, as_json)
        return
    check_sources(
        subject, Requested(options["weights"], options["tokenizer"], options["yaml"]), budget, as_json
    )


@_with_examples(
    "builder inspect model_repository/telechat2_7b", "builder inspect model_repository/telechat2_7b/1 --json"
)
@cli.command()
@click.argument("directory", type=_PATH)
@_json_option
def inspect(directory: Path, as_json: bool) -> None:
    """Show what a model directory holds."""
    from builder.inspection import inspect_directory, print_inspection
    from builder.report import print_json

    found = inspect_directory(directory)
    if as_json:
        print_json(found)
    else:
        print_inspection(found)


@_with_examples(
    "builder verify model_repository/telechat2_7b/1", "builder verify --hash model_repository/telechat2_7b/1"
)
@cli.command()
@click.argument("directory", type=_PATH)
@click.option(
    "--hash", "fill", is_flag=True, help="Hash linked files that were not hashed yet, and record the result."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@_json_option
def verify(directory: Path, fill: bool, quiet: bool, as_json: bool) -> None:
    """Compare every file of a model directory with its manifest. Exit code 7 when they differ."""
    from builder.progress import Progress
    from builder.verify import verify_command

    verify_command(directory, fill, Progress(quiet or as_json), as_json)


@_with_examples("builder doctor", "builder doctor --json")
@cli.command()
@_json_option
def doctor(as_json: bool) -> None:
    """Check this machine and installation. Exit code 1 when errors remain."""
    from builder.doctor import examine, print_findings
    from builder.report import print_json

    findings = examine()
    if as_json:
        print_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        print_findings(findings)
    if any(finding.severity == "error" for finding in findings):
        raise SystemExit(1)


cli.add_command(convert)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its documented code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, as_json = "--debug" in arguments, "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with _termination_as_interrupt():
        code = _run(arguments, as_json, debug)
    sys.exit(code)


def _run(arguments: list[str], as_json: bool, debug: bool) -> int:
    from builder.report import print_fault

    try:
        cli.main(arguments, prog_name="builder", standalone_mode=False)
        sys.stdout.flush()
    except Fault as fault:
        if debug:
            raise
        print_fault(fault, as_json)
        return fault.exit_code
    except click.ClickException as error:
        return _usage_error(error, as_json)
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("interrupted; nothing was kept\n")
        return 130
    except BrokenPipeError:
        _close_output()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if debug:
            raise
        hint = "run it again with --debug and report the traceback"
        print_fault(Fault(FaultKind.INTERNAL, f"unexpected {type(error).__name__}: {error}", hint), as_json)
        return 1
    return 0


def _usage_error(error: click.ClickException, as_json: bool) -> int:
    from builder.report import print_fault

    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "builder"
    print_fault(
        Fault(FaultKind.INVALID_REQUEST, error.format_message().rstrip("."), f"see: {command} --help"),
        as_json,
    )
    return 2


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Clean up after SIGTERM as after Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    main()
