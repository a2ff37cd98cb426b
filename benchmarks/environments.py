"""One scratch virtual environment for each peer, in the cache; never a dependency of the project."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.load import EngineError

REQUIREMENTS = {
    "llama.cpp": ("xllamacpp", "gguf", "safetensors"),
    # A plain torch may pull gigabytes of CUDA; this one does not where only CPU wheels are offered.
    "transformers": ("torch==2.13.0", "transformers", "safetensors"),
}
_STAMP = "mindport-benchmark"


def python_of(peer: str, cache: Path, install: bool = True) -> Path:
    """The interpreter of the peer's environment, made now unless it is there. Raises ``EngineError``."""
    folder = cache / "environments" / peer
    python = folder / "bin" / "python"
    if (folder / _STAMP).is_file():
        return python
    if not install:
        raise EngineError("not installed, and --no-install was given")
    print(f"installing {peer} into {folder}; once, it takes minutes", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(folder)], "python -m venv")
    requirements = REQUIREMENTS[peer]
    run(
        [str(python), "-m", "pip", "install", "--quiet", *requirements],
        f"pip install {' '.join(requirements)}",
    )
    (folder / _STAMP).write_text("\n".join(requirements) + "\n", "utf-8")
    return python


def version_of(python: Path, package: str) -> str:
    """The version of an installed package."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return run([str(python), "-c", code], "reading a version").strip()


def run(command: list[str], name: str) -> str:
    """What a command prints. Raises ``EngineError`` with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise EngineError(f"{name} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
