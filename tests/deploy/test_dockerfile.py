"""deploy/Dockerfile agrees with the settings model, the command lines and the files it copies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.faults import Fault
from daemon.cli import main as daemon_main
from daemon.settings import Settings
from daemon.settings_sources import resolve
from tests.deploy import dockerfile

ROOT = Path(__file__).resolve().parents[2]
STAGES = dockerfile.stages(dockerfile.read(ROOT / "deploy" / "Dockerfile"))
BUILD, FINAL = STAGES


def copied_from_context() -> list[str]:
    found: list[str] = []
    for instruction in BUILD:
        if instruction.name == "COPY":
            found += instruction.text.split()[:-1]
    return found


def test_what_it_copies_exists_and_reaches_the_context() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")
    }
    for name in copied_from_context():
        assert (ROOT / name).exists(), name
        assert name in allowed, f".dockerignore leaves out {name}"


def test_every_package_is_copied() -> None:
    assert {"contract", "builder", "daemon", "client"} <= set(copied_from_context())


def test_ports_are_the_defaults() -> None:
    settings = Settings()
    ports = (settings.http_port, settings.management_port, settings.metrics_port, settings.grpc_port)
    assert tuple(int(port) for port in dockerfile.last(FINAL, "EXPOSE").split()) == ports


def test_environment_is_valid_once_a_key_is_given() -> None:
    environ = dockerfile.environment(FINAL)
    resolved = resolve({}, environ=environ | {"MINDPORT_API_KEY_FILE": "/run/secrets/api_key"})
    assert resolved.settings.repository == [Path("/models")]
    assert resolved.settings.state_path == Path("/run/mindport")


def test_environment_alone_is_refused() -> None:
    with pytest.raises(Fault, match="give api_key_file, or insecure"):
        resolve({}, environ=dockerfile.environment(FINAL))


def test_it_does_not_run_as_root() -> None:
    assert dockerfile.last(FINAL, "USER") == "mindport"


def test_commands_exist() -> None:
    program, command, flag = json.loads(dockerfile.last(FINAL, "ENTRYPOINT"))
    assert program == "daemon"
    flags = [option for parameter in daemon_main.commands[command].params for option in parameter.opts]
    assert flag in flags
    health = dockerfile.last(FINAL, "HEALTHCHECK").partition("CMD ")[2]
    assert json.loads(health) == ["client", "health"]


def test_the_model_repository_is_a_volume() -> None:
    assert dockerfile.last(FINAL, "VOLUME") == dockerfile.environment(FINAL)["MINDPORT_REPOSITORY"]
