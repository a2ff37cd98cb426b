"""API key files: digests only, and a sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.faults import Fault
from daemon.api_keys import digest, read_api_keys


def test_keys_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nabcdefgh12345  # app one\n\nzyxwvuts98765\n", "utf-8")
    assert read_api_keys(path) == {digest("abcdefgh12345"), digest("zyxwvuts98765")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# only\n", "holds no key"),
        ("short\n", ":1: a key is"),
        ("ключключ1\n", ":1: a key is"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, "utf-8")
    with pytest.raises(Fault, match=said):
        read_api_keys(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="cannot be read: No such file"):
        read_api_keys(tmp_path / "none")
