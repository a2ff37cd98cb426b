"""Settings: every source, every problem at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.faults import Fault, FaultKind
from daemon.settings import Settings
from daemon.settings_sources import env_name, resolve, setting_names

NOTHING: dict[str, str] = {"PATH": "/bin"}


def problems_of(fault: Fault) -> str:
    assert fault.kind is FaultKind.INVALID_CONFIG
    return str(fault)


def test_defaults_are_the_documented_ports() -> None:
    settings = resolve({}, environ=NOTHING).settings
    assert (settings.http_port, settings.management_port, settings.metrics_port) == (1025, 1026, 1027)
    assert settings.grpc_port == 8001
    assert settings.host == "127.0.0.1"


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text("threads: 1\nmax_waiting: 7\nmax_running: 5\n", "utf-8")
    environ = {"MINDPORT_THREADS": "2", "MINDPORT_MAX_WAITING": "8"}
    resolved = resolve({"threads": "3"}, file, environ)
    assert (resolved.settings.threads, resolved.settings.max_waiting, resolved.settings.max_running) == (
        3,
        8,
        5,
    )
    assert resolved.origins["threads"] == "--threads"
    assert resolved.origins["max_waiting"] == "MINDPORT_MAX_WAITING"
    assert resolved.origins["max_running"] == str(file)
    assert resolved.origins["host"] == "default"


def test_every_setting_has_a_description_and_an_origin() -> None:
    origins = resolve({}, environ=NOTHING).origins
    for name, field in setting_names().items():
        assert field.description, name
        assert name in origins


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(Fault) as caught:
        resolve({"threads": "-1", "grpc_port": "abc"}, environ={"MINDPORT_THREDS": "2"})
    text = problems_of(caught.value)
    assert "3 problems" in text
    assert "MINDPORT_THREDS: unknown variable — did you mean MINDPORT_THREADS?" in text
    assert "--threads" in text
    assert "--grpc-port" in text


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text("http_prt: 1\nms:\n  max_row: 3\n", "utf-8")
    with pytest.raises(Fault) as caught:
        resolve({}, file, NOTHING)
    text = problems_of(caught.value)
    assert "did you mean http_port?" in text
    assert "did you mean ms.max_rows?" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1, 2]", "must hold settings"), ("a: [", "cannot be parsed"), (None, "cannot be read")],
)
def test_unusable_file(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "daemon.yaml"
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises(Fault, match=said):
        resolve({}, file, NOTHING)


def test_an_exposed_address_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="give api_key_file"):
        resolve({"host": "0.0.0.0"}, environ=NOTHING)  # noqa: S104
    assert resolve({"host": "0.0.0.0", "insecure": True}, environ=NOTHING).settings.insecure  # noqa: S104
    assert resolve({"host": "0.0.0.0", "api_key_file": str(tmp_path)}, environ=NOTHING)  # noqa: S104


def test_ports_can_be_off_but_not_all() -> None:
    assert resolve({"grpc_port": "off"}, environ=NOTHING).settings.grpc_port is None
    with pytest.raises(Fault, match="nothing would be served"):
        resolve({"grpc_port": "off", "http_port": "off"}, environ=NOTHING)
    with pytest.raises(Fault, match="needs a port of its own"):
        resolve({"grpc_port": "1025"}, environ=NOTHING)


def test_lists_come_from_repeated_flags_and_paths_in_the_environment() -> None:
    settings = resolve({"model": ["a", "b"]}, environ={"MINDPORT_REPOSITORY": "/x:/y"}).settings
    assert settings.model == ["a", "b"]
    assert settings.repository == [Path("/x"), Path("/y")]


@given(
    port=st.integers(0, 65535).filter(lambda port: port != 8001),
    threads=st.integers(0, 1024),
    flavour=st.sampled_from(["mindie", "tgi"]),
)
def test_what_is_written_is_read_back(port: int, threads: int, flavour: str) -> None:
    values = {"metrics_port": port, "threads": threads, "generate_flavour": flavour}
    direct = resolve(values, environ=NOTHING).settings
    environ = {env_name(name): str(value) for name, value in values.items()}
    assert resolve({}, environ=environ).settings == direct
    assert Settings.model_validate_json(direct.model_dump_json()) == direct


FLAT = {
    "modelWeightPath": "/models/telechat2_7b/1",
    "npuDeviceIds": [[0]],
    "worldSize": 1,
    "backendType": "ms",
    "maxSeqLen": 8192,
    "maxInputTokenLen": 6144,
    "npuMemSize": 8,
    "httpsEnabled": False,
}


def test_mindie_short_form(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(FLAT), "utf-8")
    resolved = resolve({}, file, NOTHING)
    assert resolved.settings.repository == [Path("/models")]
    assert resolved.settings.ms.kv_cache_mb == 8192
    assert any("npuDeviceIds" in warning for warning in resolved.warnings)


def test_mindie_nested_form(tmp_path: Path) -> None:
    data = {
        "Version": "1.0.0",
        "ServerConfig": {
            "ipAddress": "127.0.0.1",
            "port": 2025,
            "managementPort": 2026,
            "httpsEnabled": False,
        },
        "BackendConfig": {
            "ModelDeployConfig": {
                "maxSeqLen": 2560,
                "ModelConfig": [
                    {"modelName": "telechat2_7b", "modelWeightPath": "/m/telechat2_7b", "backendType": "ms"}
                ],
            },
            "ScheduleConfig": {"maxBatchSize": 20},
        },
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(data), "utf-8")
    settings = resolve({}, file, NOTHING).settings
    assert (settings.http_port, settings.management_port) == (2025, 2026)
    assert settings.model == ["telechat2_7b"]
    assert settings.repository == [Path("/m")]
    assert settings.ms.max_sequences == 20


def test_mindie_problems_are_reported_with_their_path(tmp_path: Path) -> None:
    data = {"ServerConfig": {"prt": 1, "httpsEnabled": True}, "BackendConfig": {"backendType": "tpu"}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(data), "utf-8")
    with pytest.raises(Fault) as caught:
        resolve({}, file, NOTHING)
    text = problems_of(caught.value)
    assert "ServerConfig.prt: unknown key — did you mean port?" in text
    assert "HTTPS" in text
    assert "'tpu'" in text
