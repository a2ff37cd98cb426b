"""The compiled graph in a file: found by the next process, never trusted when damaged, never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from daemon.backends.ms.graph_cache import GraphCache
from tests.daemon.backends.ms.tiny_telechat2 import write_model

_LOAD = """
import sys
from pathlib import Path
import numpy as np
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment

limits = {"num_blocks": 8, "max_rows": 32, "max_logit_rows": 32}
options = RunnerOptions(**limits, threads=2, packed_cache=Path(sys.argv[2]))
runner = ModelRunner.load(Path(sys.argv[1]), options=options, progress=lambda *_: None)
logits = runner.execute([Segment(range(20), 0, range(2), 0, *runner.rope_for(20))])
print(np.ascontiguousarray(logits).tobytes().hex())
"""
_FOUND = "Use the compilation cache"


def load(model: Path, cache: Path) -> tuple[str, bool]:
    """Logits, and whether MindSpore says that it found its graph, of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(model), str(cache)],
        env={**os.environ, "GLOG_v": "2", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()[-1], _FOUND in done.stdout + done.stderr


def test_the_next_process_finds_the_graph_and_a_damaged_one_is_made_anew(tmp_path: Path) -> None:
    model, cache = write_model(tmp_path / "tiny" / "1"), tmp_path / "cache"
    expected, found = load(model, cache)
    assert not found
    (path,) = cache.glob("*.graph")
    assert load(model, cache) == (expected, True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert load(model, cache) == (expected, False)
    assert load(model, cache) == (expected, True), "what was damaged has been replaced"


def compile_into(cache: GraphCache, content: bytes | None) -> list[bytes]:
    """What a compiler finds in its folder; ``content``: what it leaves there."""
    with cache.used():
        assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "1"
        folder = Path(os.environ["MS_COMPILER_CACHE_PATH"])
        found = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        if content is not None:
            (folder / "rank_0").mkdir(exist_ok=True)
            (folder / "rank_0" / "graph").write_bytes(content)
    assert "MS_COMPILER_CACHE_PATH" not in os.environ
    assert not folder.exists()
    return found


def test_what_a_compiler_leaves_is_found_by_the_next(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path / "new" / "a.graph")
    assert compile_into(cache, b"one") == []
    assert compile_into(cache, None) == [b"one"]
    assert compile_into(cache, b"two") == [b"one"]
    assert compile_into(cache, None) == [b"two"]
    assert [path.name for path in cache.path.parent.iterdir()] == ["a.graph"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_what_is_no_archive_is_replaced(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = GraphCache(tmp_path / "a.graph")
    cache.path.write_bytes(content)
    assert compile_into(cache, b"one") == []
    assert "is not used" in caplog.text
    assert compile_into(cache, None) == [b"one"]


def test_a_failed_compilation_is_not_kept(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path / "a.graph")

    def compile_half() -> None:
        with cache.used():
            Path(os.environ["MS_COMPILER_CACHE_PATH"], "graph").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compile_half()
    assert not cache.path.exists()


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = GraphCache(tmp_path / "file" / "a.graph")
    compile_into(cache, b"one")
    assert "cannot be kept" in caplog.text


def test_names_in_an_archive_stay_inside(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path / "a.graph")
    with zipfile.ZipFile(cache.path, "w") as archive:
        archive.writestr("../outside", b"x")
    with cache.used():
        folder = Path(os.environ["MS_COMPILER_CACHE_PATH"])
        assert not (folder.parent / "outside").exists()
