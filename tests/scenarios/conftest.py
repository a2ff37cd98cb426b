"""One packaged repository and one running daemon for all scenarios that do not hurt it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.terminal import RunningDaemon, run, running_daemon

MODEL = "telechat2_tiny"


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that ``builder package --model telechat2_tiny`` made."""
    if importlib.util.find_spec("mindspore") is None:
        pytest.skip("MindSpore is not installed: pip install -e '.[ms]'")
    repository = tmp_path_factory.mktemp("shelf")
    answer = run("builder", "package", "--model", MODEL, "--out", str(repository), "--json")
    assert answer.code == 0, answer.err
    return repository


def add_mock(repository: Path, name: str, **options: object) -> None:
    """A model with the demo model's tokenizer and no weights, served by ``mock``."""
    source, target = repository / MODEL / "1", repository / name / "1"
    target.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(source / file, target / file)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["serving"] |= {"backend": "mock", "options": options}
    for key in ("network", "layer_api"):
        config["serving"].pop(key, None)
    (target / "config.json").write_text(json.dumps(config), "utf-8")


@pytest.fixture(scope="session")
def daemon(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """The demo model on ``ms`` and a mock beside it."""
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(packaged, repository, dirs_exist_ok=True)
    add_mock(repository, "echo", tokens_per_s=200)
    flags = ("--default-model", MODEL)
    with running_daemon(repository, tmp_path_factory.mktemp("state"), *flags) as running:
        yield running
