"""The program ``daemon``: start, stop, status, ps, logs, check, load, unload."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from contract.faults import Fault, FaultKind
from daemon import cli_options, cli_output
from daemon.state import StateDirectory

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Group(click.Group):
    def main(self, *args: Any, **extra: Any) -> Any:
        """Tell mistakes on the command line in the shape of all our errors."""
        words = extra.get("args") or (args[0] if args else None) or sys.argv[1:]
        try:
            code = super().main(*args, **{"prog_name": "daemon", **extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.exceptions.Abort:  # interrupted before the command itself began
            sys.exit(130)
        except click.ClickException as error:
            command = (
                error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "daemon"
            )
            sentence = error.format_message().rstrip(".")
            fault = Fault(FaultKind.INVALID_REQUEST, sentence, f"see: {command} --help")
            cli_output.print_fault(fault, as_json="--json" in words)
            sys.exit(fault.exit_code)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Fault as fault:
            cli_output.print_fault(fault, as_json=bool(ctx.obj))
            ctx.exit(fault.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # the reader has what it wanted; click would call that a failure
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)


@click.group(cls=_Group, context_settings=CONTEXT)
@click.version_option(package_name="mindport")
def main() -> None:
    """Serve a model repository over HTTP and gRPC.

    \b
    daemon start                           serve every model of ./model_repository
    daemon start --model telechat2_tiny    serve one of them
    daemon ps                              models, states and worker processes
    daemon stop                            finish running requests and stop
    """


def _json_option(command: Any) -> Any:
    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.find_root().obj = value
        return value

    return click.option("--json", "as_json", is_flag=True, callback=remember, help="Print one JSON object.")(
        command
    )


def _state(options: dict[str, Any]) -> StateDirectory:
    settings, _, _ = cli_options.settings_from(options)
    return StateDirectory(settings.state_path)


@main.command()
@click.option("--foreground", is_flag=True, help="Stay in the foreground: for containers and systemd.")
@_json_option
@cli_options.setting_options()
@click.pass_context
def start(ctx: click.Context, /, foreground: bool, as_json: bool, **options: Any) -> None:
    """Start the daemon and wait until every model is ready.

    \b
    daemon start
    daemon start --repository /srv/models --model telechat2_7b --threads 8
    daemon start --config conf/config.json         MindIE's file works too
    daemon start --foreground                      for containers and systemd
    """
    settings, _, warnings = cli_options.settings_from(options)
    for warning in warnings:
        cli_output.warn(warning)
    if foreground:
        from daemon.observe.logs import configure
        from daemon.run import run

        configure(sys.stderr, settings.log_level.upper(), as_json=not sys.stderr.isatty())
        report = cli_output.ForegroundReport(as_json=as_json)
        ctx.exit(run(settings, report, lambda info: cli_output.print_started(info, as_json)))
    from daemon.launch import launch

    with cli_output.LoadProgress() as progress:
        info = launch(settings, progress.show)
    progress.warn()
    cli_output.print_started(info, as_json)


@main.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds to wait.",
)
@click.option("--force", is_flag=True, help="Cut running requests off; kill what does not end.")
@_json_option
@cli_options.setting_options(cli_options.STATE_SETTINGS)
def stop(timeout_s: float, force: bool, as_json: bool, **options: Any) -> None:
    """Let running requests finish, unload the models and stop."""
    from daemon import control

    pid = control.stop(_state(options), timeout_s, force=force)
    cli_output.print_result({"stopped": pid}, f"stopped (pid {pid})", as_json)


@main.command()
@_json_option
@cli_options.setting_options(cli_options.STATE_SETTINGS)
def status(as_json: bool, **options: Any) -> None:
    """Tell whether the daemon runs, where it listens and what it serves.

    Exit code 0 when it is ready, 4 when none runs, 5 when it runs and is not ready.
    """
    from daemon import control

    answer = control.status(_state(options))
    cli_output.print_status(answer, as_json)
    if not answer.get("ready"):
        sys.exit(5)


@main.command()
@_json_option
@cli_options.setting_options(cli_options.STATE_SETTINGS)
def ps(as_json: bool, **options: Any) -> None:
    """List the models with state, worker process, memory and requests."""
    from daemon import control

    answer = control.status(_state(options))
    cli_output.print_models(answer.get("models", []), as_json)


@main.command()
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Last lines to print."
)
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they come.")
@cli_options.setting_options(cli_options.STATE_SETTINGS)
def logs(lines: int, follow: bool, **options: Any) -> None:
    """Print the daemon's log: one JSON object a line."""
    state = _state(options)
    if not state.log_path.exists():
        raise Fault(
            FaultKind.NOT_FOUND, f"there is no log at {state.log_path}", "start it with: daemon start"
        )
    cli_output.print_log(state, lines, follow)


@main.command()
@click.option("--show-origin", is_flag=True, help="Print every setting with where its value came from.")
@_json_option
@cli_options.setting_options()
def check(show_origin: bool, as_json: bool, **options: Any) -> None:
    """Check settings, repository and ports without starting anything.

    Every problem is listed; exit code 2 when there is one.
    """
    from daemon.preflight import check_all

    settings, origins, warnings = cli_options.settings_from(options)
    if show_origin:
        cli_output.print_origins(settings, origins, as_json)
        return
    report = check_all(settings)
    cli_output.print_check(report, warnings, as_json)
    if report.problems:
        sys.exit(2)


def _model_control(name: str, verb: str, help_text: str) -> None:
    @main.command(name, help=help_text)
    @click.argument("model")
    @_json_option
    @cli_options.setting_options(cli_options.STATE_SETTINGS)
    def command(model: str, as_json: bool, **options: Any) -> None:
        from daemon import control

        getattr(control, name)(_state(options), model)
        cli_output.print_result({verb: model}, f"{verb} {model}", as_json)


_model_control("load", "loaded", "Load or reload MODEL (NAME or NAME@VERSION) in the running daemon.")
_model_control("unload", "unloaded", "Let MODEL's requests finish and unload it from the running daemon.")


if __name__ == "__main__":
    main()
