"""The doctor looks, imports nothing heavy, and counts."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from builder import doctor
from builder.doctor import examine, satisfies
from tests.builder.conftest import ROOT, Builder


def test_this_machine(builder: Builder) -> None:
    run = builder("doctor", "--json")
    findings = {found["subject"]: found for found in run.json()["findings"]}
    assert {
        "python",
        "tokenizers",
        "mindspore",
        "compiler",
        "cpu",
        "memory",
        "disk",
        "port 1025",
        "networks",
    } <= set(findings)
    assert findings["python"]["severity"] == "ok"
    errors = [found for found in findings.values() if found["severity"] == "error"]
    assert run.code == (1 if errors else 0)
    assert all(found["remedy"] for found in findings.values() if found["severity"] != "ok")
    assert "errors, " in builder("doctor").out


def test_imports_nothing_heavy() -> None:
    code = "import sys\nfrom builder.doctor import examine\nexamine()\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"mindspore", "numpy", "daemon", "tokenizers", "grpc"} & set(run.stdout.split())


def test_a_missing_and_an_old_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    original = metadata.version

    def version(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError
        return "0.1" if name == "click" else original(name)

    monkeypatch.setattr("builder.doctor.metadata.version", version)
    findings = {found.subject: found for found in examine()}
    assert findings["rich"].severity == findings["click"].severity == "error"
    assert findings["rich"].remedy.startswith("pip install 'rich")


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = doctor._port(taken.getsockname()[1], "HTTP")
    assert finding.severity == "warning"


def test_a_foreign_daemon_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr("builder.doctor.importlib.util.find_spec", lambda _name: Spec)
    finding = doctor._import_name()
    assert finding.severity == "error"
    assert "python-daemon" in finding.remedy


@pytest.mark.parametrize(
    ("version", "bounds", "fine"),
    [
        ("1.2.3", ">=1.2,<2", True),
        ("2.0", "<2", False),
        ("1.2", "==1.2.0", True),
        ("1.26.4", "<2,>=1.26", True),
        ("3.0rc1", ">=3", True),
        ("1.0", "", True),
        ("1.0", "!=1.0", False),
        ("0.9", ">1", False),
    ],
)
def test_satisfies(version: str, bounds: str, fine: bool) -> None:
    assert satisfies(version, bounds) is fine
