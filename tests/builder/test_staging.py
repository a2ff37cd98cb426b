"""Staging folders: locked, moved in one step, exchanged, swept up."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from builder import staging
from builder.staging import exchange, publish, remove_abandoned, replace_file, staging_folder


@pytest.fixture(params=[True, False], ids=["renameat2", "plain rename"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(staging, "_renameat2", lambda *_: False)


@pytest.mark.usefixtures("_both_ways")
def test_publish_and_exchange(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "m") as first:
        (first / "f").write_text("1")
        publish(first, tmp_path / "m" / "1")
    with staging_folder(tmp_path / "m") as second:
        (second / "f").write_text("2")
        with pytest.raises(FileExistsError):
            publish(second, tmp_path / "m" / "1")
        exchange(second, tmp_path / "m" / "1")
        assert (second / "f").read_text() == "1"
    assert (tmp_path / "m/1/f").read_text() == "2"
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["1"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with staging_folder(tmp_path / "a" / "b") as folder:
            (folder / "f").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_only_abandoned_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".building-dead").mkdir()
    (tmp_path / ".building-dead" / "f").write_text("1")
    (tmp_path / ".other").mkdir()
    with staging_folder(tmp_path) as folder:
        assert not (tmp_path / ".building-dead").exists()
        assert remove_abandoned(tmp_path) == []
        assert folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".other"]


def test_many_at_once(tmp_path: Path) -> None:
    """A folder is never taken for abandoned between its making and its locking."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                with staging_folder(tmp_path) as folder:
                    (folder / "f").write_text("1")
                    publish(folder, tmp_path / f"{number}-{turn}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(tmp_path.iterdir())) == 180


def test_replace_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "x", b"1")
    replace_file(tmp_path / "x", b"2")
    assert (tmp_path / "x").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
