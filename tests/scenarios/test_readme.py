"""The commands of the README, step by step, as a reader would type them: free ports, an empty folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios import terminal

README = terminal.ROOT / "README.md"
SECTION = "### Step by step"
LISTENERS = {"http": 1025, "management": 1026, "metrics": 1027, "grpc": 8001}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Free ports in place of the default ones."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in LISTENERS]
    found = {name: sock.getsockname()[1] for name, sock in zip(LISTENERS, sockets, strict=True)}
    for sock in sockets:
        sock.close()
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the three programs in ``bin``."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "bin").mkdir()
    for program in ("builder", "daemon", "client"):
        script = folder / "bin" / program
        code = f"import sys; sys.argv[0] = '{program}'; from {program}.cli import main; main()"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n', "utf-8")
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def variables(desk: Path, ports: dict[str, int]) -> Iterator[dict[str, str]]:
    """The environment of the commands; at the end no daemon is left."""
    environment = terminal.environment(
        {f"MINDPORT_{name.upper()}_PORT": str(port) for name, port in ports.items()}
        | {
            "MINDPORT_STATE_DIR": str(desk / "state"),
            "MINDPORT_URL": f"http://127.0.0.1:{ports['http']}",
            "PATH": f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "no_proxy": "127.0.0.1",
        }
    )
    yield environment
    subprocess.run(["daemon", "stop", "--force"], env=environment, cwd=desk, capture_output=True, check=False)


def steps(ports: dict[str, int]) -> list[tuple[str, str]]:
    """Language and text of each block, without the installation, at the ports in use."""
    text = README.read_text("utf-8").partition(f"{SECTION}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name, port in LISTENERS.items():
        blocks = [
            (lang, block.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}")) for lang, block in blocks
        ]
    return [(lang, block) for lang, block in blocks if "scripts/install" not in block]


def test_the_steps_work(desk: Path, ports: dict[str, int], variables: dict[str, str]) -> None:
    if importlib.util.find_spec("mindspore") is None:
        pytest.skip("MindSpore is not installed: pip install '.[ms]'")
    transcript = ""
    blocks = steps(ports)
    assert [lang for lang, _ in blocks] == ["bash", "bash", "bash", "python", "bash"]
    for language, block in blocks:
        shell = ["bash", "-euo", "pipefail", "-c", block]
        command = shell if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(
            command, env=variables, cwd=desk, capture_output=True, text=True, timeout=100, check=False
        )
        transcript += f"{block}{done.stdout}{done.stderr}"
        assert done.returncode == 0, transcript
    assert "Daemon start success!" in transcript
    assert '"generated_text":' in transcript
    assert "12+30=42" in transcript
    assert "巴黎" in transcript
    assert "telechat2_tiny" in transcript
