"""What the program ``daemon`` prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import click

from contract.faults import Fault
from daemon.notify import StartReport
from daemon.settings import Settings
from daemon.state import StateDirectory

if TYPE_CHECKING:
    from daemon.preflight import Report

FOLLOW_S = 0.2
SUCCESS = "Daemon start success!"
"""The line that MindIE users' scripts wait for."""


def paint(text: str, **style: Any) -> str:
    """Coloured; click takes the colours out again where standard error is no terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else click.style(text, **style)


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, ensure_ascii=False, indent=2, default=str))


def print_result(data: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(data)
    else:
        click.echo(sentence)


def print_fault(fault: Fault, as_json: bool) -> None:
    """One sentence and what to do, on standard error; with ``--json`` the fault on standard output too."""
    if as_json:
        print_json({"error": fault.to_dict()})
    click.echo(paint("error: ", fg="red", bold=True) + fault.message, err=True)
    if fault.hint:
        click.echo(paint("hint: ", fg="yellow") + fault.hint, err=True)


def print_started(info: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({key: value for key, value in info.items() if key not in ("token", "control")})
        return
    click.echo(SUCCESS)
    for name, text in (
        ("http", "inference"),
        ("grpc", "gRPC"),
        ("management", "management"),
        ("metrics", "metrics"),
    ):
        if info.get(name):
            suffix = "/metrics" if name == "metrics" else ""
            click.echo(f"  {text:<11} {info[name]}{suffix}")
    click.echo(f"  {'pid':<11} {info['pid']}")
    click.echo(f"  {'log':<11} {info['log']}")
    sys.stdout.flush()


def print_status(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    state = "ready" if answer.get("ready") else "stopping" if answer.get("stopping") else "not ready"
    click.echo(f"daemon {state}, pid {answer.get('pid')}")
    for name in ("http", "grpc", "management", "metrics"):
        if answer.get(name):
            click.echo(f"  {name:<11} {answer[name]}")
    print_models(answer.get("models", []), False)


def print_models(models: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"models": models})
        return
    if not models:
        click.echo("no models")
        return
    header = ("MODEL", "VERSION", "STATE", "BACKEND", "PID", "MEMORY", "RUNNING", "WAITING", "REASON")
    rows = [header, *(row for model in models for row in (_row(model), *_adapter_rows(model)))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    state = str(model.get("state", ""))
    if state == "loading":
        state = f"loading {model.get('progress', 0.0):.0%}"
    stats = model.get("stats") or {}
    memory = stats.get("memory_bytes") or model.get("memory_bytes") or 0
    return (
        str(model.get("name", "")),
        str(model.get("version", "")),
        state,
        str(model.get("backend", "")),
        str(model.get("pid") or "-"),
        f"{memory / 2**20:.0f} MiB" if memory else "-",
        str(stats.get("running", "-")),
        str(stats.get("waiting", "-")),
        str(model.get("reason", "")).split("\n", 1)[0],
    )


def _adapter_rows(model: dict[str, Any]) -> list[tuple[str, ...]]:
    """The adapters that it serves, or will serve again, each as a model whose worker is another's."""
    name, version, state, backend, pid, *_ = _row(model)
    return [
        (adapter, version, state, backend, pid, "-", "-", "-", f"an adapter of {name}")
        for adapter in model.get("adapters", [])
    ]


def print_origins(settings: Settings, origins: dict[str, str], as_json: bool) -> None:
    values = settings.model_dump(mode="json")
    flat = {name: _value(values, name) for name in origins}
    if as_json:
        print_json({name: {"value": flat[name], "origin": origins[name]} for name in origins})
        return
    width = max(len(name) for name in flat)
    for name, value in flat.items():
        shown = "off" if value is None and name.endswith("_port") else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:<{width}}  {shown}  ({origins[name]})")


def _value(values: dict[str, Any], name: str) -> Any:
    room, _, inner = name.partition(".")
    return values[room][inner] if inner else values[room]


def print_check(report: Report, warnings: list[str], as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict() | {"warnings": [*warnings, *report.warnings]})
        return
    for line in report.facts:
        click.echo(line)
    for warning in (*warnings, *report.warnings):
        warn(warning)
    for problem in report.problems:
        click.echo(paint("error: ", fg="red", bold=True) + str(problem), err=True)
    if not report.problems:
        click.echo("ok: the daemon can start")


def print_log(state: StateDirectory, lines: int, follow: bool) -> None:
    from daemon.launch import last_lines

    for line in last_lines(state, lines):
        click.echo(line, nl=False)
    if not follow:
        return
    log = state.log_path.open(encoding="utf-8", errors="replace")
    log.seek(0, os.SEEK_END)
    while True:
        for line in log:
            click.echo(line, nl=False)
        time.sleep(FOLLOW_S)
        if _moved_aside(log, state.log_path):
            for line in log:
                click.echo(line, nl=False)
            log.close()
            log = state.log_path.open(encoding="utf-8", errors="replace")


def _moved_aside(log: TextIO, path: Path) -> bool:
    try:
        return os.fstat(log.fileno()).st_ino != path.stat().st_ino
    except OSError:
        return False


def warn(text: str) -> None:
    click.echo(paint("warning: ", fg="yellow") + text, err=True)


class LoadProgress:
    """Loading models on standard error: a bar each on a terminal, else a line per tenth."""

    def __init__(self) -> None:
        self._live: Any = None
        self._bars: dict[str, Any] = {}
        self._tenths: dict[str, int] = {}
        self._models: list[dict[str, Any]] = []

    def __enter__(self) -> LoadProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._live = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def warn(self) -> None:
        """After a start: what is not served though it stands in the repository."""
        if not self._models:
            warn("the repository holds no models: build one with builder package")
        for model in self._models:
            if model["state"] == "broken":
                warn(f"{model['name']} version {model['version']} is broken: {model['reason']}")

    def show(self, models: list[dict[str, Any]]) -> None:
        self._models = models
        for model in models:
            name = f"{model['name']}@{model['version']}"
            if self._live is not None:
                self._bar(name, model)
            else:
                self._line(name, model)

    def _bar(self, name: str, model: dict[str, Any]) -> None:
        if name not in self._bars:
            self._bars[name] = self._live.add_task(name, total=1.0, text="")
        fraction = 1.0 if model["state"] == "ready" else model["progress"]
        self._live.update(self._bars[name], completed=fraction, text=model["text"] or model["state"])

    def _line(self, name: str, model: dict[str, Any]) -> None:
        tenth = 10 if model["state"] == "ready" else int(model["progress"] * 10)
        if model["state"] in ("loading", "ready") and tenth > self._tenths.get(name, -1):
            self._tenths[name] = tenth
            click.echo(f"loading {name} {tenth * 10}%", err=True)


class ForegroundReport(StartReport):
    """A start report that also shows progress and the fault to whoever watches the foreground."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__(None)
        self._as_json = as_json
        self._shown = LoadProgress()

    def progress(self, models: list[dict[str, Any]]) -> None:
        self._shown.show(models)

    def failed(self, fault: dict[str, Any]) -> None:
        super().failed(fault)
        print_fault(Fault.from_dict(fault), as_json=self._as_json)

    def ready(self, info: dict[str, Any]) -> None:
        super().ready(info)
        self._shown.warn()
