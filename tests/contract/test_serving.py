"""The block "serving": what it may name, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.faults import Fault, FaultKind
from contract.serving import parse_serving, read_config

BLOCK: dict[str, Any] = {
    "format_version": 1,
    "backend": "ms",
    "limits": {"max_seq_len": 64, "max_input_tokens": 32},
}


@pytest.mark.parametrize("outside", ["/etc/passwd", "../2/tokenizer.json", "a/../../b"])
@pytest.mark.parametrize("key", ["network", "tokenizer", "prompt", "adapters"])
def test_files_outside_the_directory_are_refused(key: str, outside: str) -> None:
    named: Any = {"prompt": {"chat_template": outside}, "adapters": {"pirate": outside}}.get(key, outside)
    with pytest.raises(Fault, match="outside the model directory") as caught:
        parse_serving({**BLOCK, key: named}, Path("model"))
    assert caught.value.kind is FaultKind.INVALID_MODEL


def test_files_inside_the_directory_are_named() -> None:
    block = {**BLOCK, "tokenizer": "tokenizer.json", "adapters": {"pirate": "adapters/pirate"}}
    serving = parse_serving(block, Path("model"))
    assert serving.adapters == {"pirate": "adapters/pirate"}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format_version": 99}, "format version 99"), ({"colour": 1}, "colour"), ({"limits": 3}, "limits")],
)
def test_a_bad_block_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Fault, match=words):
        parse_serving({**BLOCK, **change}, Path("model"))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Fault, match=r"config\.json"):
        read_config(tmp_path)
