"""deploy/compose.yaml agrees with the Dockerfile and the settings model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from daemon.settings import Settings
from daemon.settings_sources import env_name, setting_names
from tests.deploy import dockerfile

FOLDER = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
DAEMON: dict[str, Any] = COMPOSE["services"]["daemon"]
IMAGE = dockerfile.stages(dockerfile.read(FOLDER / "Dockerfile"))[-1]


def test_it_builds_the_dockerfile() -> None:
    context = FOLDER / DAEMON["build"]["context"]
    assert (context / DAEMON["build"]["dockerfile"]).samefile(FOLDER / "Dockerfile")


def test_its_variables_are_settings() -> None:
    known = {env_name(name) for name in setting_names()}
    assert set(DAEMON["environment"]) <= known


def test_the_secret_it_names_is_mounted() -> None:
    assert DAEMON["environment"]["MINDPORT_API_KEY_FILE"] == "/run/secrets/api_key"
    assert set(DAEMON["secrets"]) == set(COMPOSE["secrets"]) == {"api_key"}


def test_published_ports_are_defaults_on_loopback() -> None:
    settings = Settings()
    expected = {f"127.0.0.1:{port}:{port}" for port in (settings.http_port, settings.grpc_port)}
    assert set(DAEMON["ports"]) == expected


def test_the_repository_is_read_only() -> None:
    (volume,) = DAEMON["volumes"]
    assert volume["read_only"] is True
    assert volume["target"] == dockerfile.environment(IMAGE)["MINDPORT_REPOSITORY"]
    assert (FOLDER / volume["source"].split(":-")[1].rstrip("}")).resolve().name == "model_repository"


def test_it_waits_longer_than_the_drain() -> None:
    assert int(DAEMON["stop_grace_period"].rstrip("s")) > Settings().drain_timeout_s


def test_everything_it_writes_to_is_in_memory() -> None:
    assert DAEMON["read_only"] is True
    assert {dockerfile.environment(IMAGE)["MINDPORT_STATE_DIR"], dockerfile.last(IMAGE, "WORKDIR")} <= set(
        DAEMON["tmpfs"]
    )


def test_the_health_check_is_the_image_s() -> None:
    assert DAEMON["healthcheck"]["test"] == ["CMD", "client", "health"]
