"""Every network in the source tree is on the list of known ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.networks import KNOWN_NETWORKS, is_known, network_source, networks_folder, shipped_network

ROOT = Path(__file__).parents[2]


def test_shipped_networks_are_known() -> None:
    files = sorted(networks_folder().glob("[!_]*.py"))
    assert files
    unknown = [path.name for path in files if not is_known(sha256_of_file(path))]
    assert not unknown, "run: python scripts/update_networks.py"
    assert all(shipped_network(path.name)[1].name == path.name for path in files)


def test_the_list_is_well_formed() -> None:
    for digest, network in KNOWN_NETWORKS.items():
        assert len(digest) == 64
        assert network.name.endswith(".py")
        assert network.layer_api >= 1
    assert not is_known("0" * 64)


def test_an_unknown_name() -> None:
    with pytest.raises(Fault, match=r"no network nothing\.py") as caught:
        network_source("nothing.py")
    assert caught.value.kind is FaultKind.NOT_FOUND
    assert "telechat2.py" in caught.value.hint


def test_a_changed_network_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("LAYER_API = 1\n")
    monkeypatch.setattr("contract.networks.networks_folder", lambda: tmp_path)
    with pytest.raises(Fault, match="not on the list") as caught:
        shipped_network("x.py")
    assert caught.value.kind is FaultKind.UNTRUSTED_CODE


def test_finding_them_does_not_import_the_daemon() -> None:
    find = "from contract.networks import network_source\nnetwork_source('telechat2.py')"
    code = f"import sys\n{find}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "daemon" not in run.stdout.split()


def test_the_script_agrees() -> None:
    run = subprocess.run(
        [sys.executable, "scripts/update_networks.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
