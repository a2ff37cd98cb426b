"""deploy/systemd/mindport.service agrees with the settings model and the command line."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

from contract.faults import EXIT_CODES, FaultKind
from daemon.cli import main as daemon_main
from daemon.settings import Settings
from daemon.settings_sources import env_name, setting_names

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "mindport.service"


def service() -> dict[str, list[str]]:
    """The keys of [Service]; one may occur several times."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_it_has_the_three_sections() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(UNIT, "utf-8")
    assert parser.sections() == ["Unit", "Service", "Install"]


def test_the_command_exists() -> None:
    program, command, *arguments = shlex.split(service()["ExecStart"][0])
    assert Path(program).name == "daemon"
    known = [option for parameter in daemon_main.commands[command].params for option in parameter.opts]
    assert {argument for argument in arguments if argument.startswith("--")} == {"--foreground", "--config"}
    assert {"--foreground", "--config"} <= set(known)


def test_it_waits_for_the_daemon_s_own_word() -> None:
    assert service()["Type"] == ["notify"]
    assert service()["NotifyAccess"] == ["main"]


def test_it_waits_longer_than_the_daemon_does() -> None:
    settings = Settings()
    assert int(service()["TimeoutStartSec"][0]) > settings.start_timeout_s
    assert int(service()["TimeoutStopSec"][0]) > settings.drain_timeout_s


def test_what_does_not_mend_itself_is_not_restarted() -> None:
    codes = {int(code) for code in service()["RestartPreventExitStatus"][0].split()}
    assert codes == {EXIT_CODES[FaultKind.INVALID_CONFIG], EXIT_CODES[FaultKind.START_FAILED]}


def test_its_variables_are_settings() -> None:
    known = {env_name(name) for name in setting_names()} | {"HOME"}
    assert {pair.partition("=")[0] for pair in service()["Environment"]} <= known


def test_the_default_repository_is_in_its_state_directory() -> None:
    assert service()["WorkingDirectory"] == [f"/var/lib/{service()['StateDirectory'][0]}"]
    assert not Settings().repository[0].is_absolute()
