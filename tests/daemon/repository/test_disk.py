"""Every model folder is listed; the unusable ones say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.faults import Fault, FaultKind
from daemon.repository.disk import VersionOnDisk, scan
from tests.fakes import write_model


def only(repository: Path) -> VersionOnDisk:
    (found,) = scan([repository])
    return found


def reason(found: VersionOnDisk) -> str:
    assert found.fault is not None
    return str(found.fault)


def test_versions_are_positive_integers_in_order(tmp_path: Path) -> None:
    for version in ("10", "2", "1", "01", "0", "x", ".3", "-1"):
        write_model(tmp_path, "m", version=version)
    write_model(tmp_path, ".hidden")
    (tmp_path / "README.md").write_text("not a model")
    assert [(one.name, one.version) for one in scan([tmp_path])] == [("m", "1"), ("m", "2"), ("m", "10")]


def test_a_model_without_versions(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert "holds no version folder" in reason(only(tmp_path))


def test_the_same_name_in_two_repositories(tmp_path: Path) -> None:
    for repository in ("a", "b"):
        write_model(tmp_path / repository, "m")
    (found,) = scan([tmp_path / "a", tmp_path / "b"])
    assert "in more than one repository" in reason(found)


def test_a_missing_repository(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="No such file") as caught:
        scan([tmp_path / "nowhere"])
    assert caught.value.kind is FaultKind.INVALID_CONFIG


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold a JSON object"),
        ("{}", 'no block "serving"'),
        ('{"serving": {"format_version": 1}}', "missing required field `backend`"),
        ('{"serving": {"format_version": 99, "backend": "ms", "limits": '
         '{"max_seq_len": 9, "max_input_tokens": 8}}}', "upgrade MindPort"),
        ('{"serving": {"format_version": 1, "backend": "ms", "limit": 1}}', "limit"),
    ],
)  # fmt: skip
def test_a_broken_config_is_listed(tmp_path: Path, content: str, words: str) -> None:
    folder = write_model(tmp_path, "m")
    (folder / "config.json").write_text(content)
    found = only(tmp_path)
    assert words in reason(found)


def test_a_name_that_requests_could_not_spell(tmp_path: Path) -> None:
    write_model(tmp_path, "a@b")
    assert "rename the folder" in reason(only(tmp_path))


def test_config_pbtxt_names_the_backend(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "m")
    config = json.loads((folder / "config.json").read_text())
    del config["serving"]["backend"]
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "config.pbtxt").write_text('name: "m"\nbackend: "mock"\nmax_batch_size: 0\n')
    assert only(tmp_path).backend == "mock"
    (tmp_path / "m" / "config.pbtxt").write_text("backend: {")
    assert "not a Triton model configuration" in reason(only(tmp_path))


def test_a_python_model_is_listed_with_its_backend(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text('backend: "python"')
    found = only(tmp_path)
    assert (found.backend, found.serving, found.fault) == ("python", None, None)
