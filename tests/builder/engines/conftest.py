"""Other engines, in an interpreter of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
Ask = Callable[[str, Path], Any]


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Runs a program in a folder that is its argument; what it prints last is its answer, in JSON."""
    venv = Path(os.environ.get("ENGINES_VENV", ".venv-engines"))
    python = ROOT / venv / "bin" / "python"
    if not (ROOT / venv / "engines-installed").is_file():
        pytest.skip(f"{venv} has no mindformers and transformers: bash scripts/install-engines")

    def run(program: str, folder: Path) -> Any:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment = {**kept, "GLOG_v": "3", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [python, "-c", program, str(folder)],
            env={**environment, "HF_MODULES_CACHE": str(folder.parent / "modules")},
            cwd=folder.parent,
            capture_output=True,
            check=False,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
