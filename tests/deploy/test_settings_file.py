"""deploy/daemon.yaml is generated, complete and accepted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from daemon.cli import main
from daemon.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "daemon.yaml"
FREE_PORTS = {f"MINDPORT_{name}_PORT": "0" for name in ("HTTP", "MANAGEMENT", "METRICS", "GRPC")}


def uncommented() -> str:
    return re.sub(r"^#(?=(?:  )?[a-z_]+:)", "", FILE.read_text("utf-8"), flags=re.MULTILINE)


def test_it_is_up_to_date() -> None:
    script = ROOT / "scripts" / "update_settings_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_uncommented_it_is_the_defaults() -> None:
    values = yaml.safe_load(uncommented())
    assert set(values) == set(Settings.model_fields)
    assert Settings.model_validate(values) == Settings()


@pytest.mark.parametrize("whole", [False, True])
def test_the_daemon_accepts_it(tmp_path: Path, whole: bool) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text(uncommented() if whole else FILE.read_text("utf-8"), "utf-8")
    environment = FREE_PORTS | {
        "MINDPORT_STATE_DIR": str(tmp_path / "state"),
        "MINDPORT_REPOSITORY": str(tmp_path),
    }
    result = CliRunner().invoke(main, ["check", "--config", str(file)], env=environment)
    assert result.exit_code == 0, result.output
    assert "the daemon can start" in result.output
