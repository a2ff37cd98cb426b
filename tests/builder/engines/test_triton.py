"""A real Triton lists a packaged model. That config.pbtxt parses is in test_package.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.builder.engines.conftest import ROOT

PORT = 18001


def test_triton_lists_the_model(tmp_path: Path) -> None:
    triton = shutil.which("tritonserver")
    if triton is None:
        pytest.skip("tritonserver is not on the PATH; NVIDIA publishes it as a container image only")
    command = [
        sys.executable,
        "-m",
        "builder.cli",
        "package",
        "--model",
        "telechat2_tiny",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    options = ["--model-control-mode=explicit", f"--grpc-port={PORT}", "--allow-http=false"]
    server = subprocess.Popen([triton, f"--model-repository={tmp_path}", *options])
    try:
        assert "telechat2_tiny" in listed()
    finally:
        server.terminate()
        server.wait(30)


def listed(timeout_s: float = 60.0) -> list[str]:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{PORT}")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return [model.name for model in client.get_model_repository_index().models]
        except InferenceServerException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
