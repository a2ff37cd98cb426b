"""Forecasts agree with MindIE's arithmetic."""

from __future__ import annotations

import pytest

from builder.families import FAMILIES
from builder.forecast import Budget, forecast, size_text
from builder.recipe import find_recipe


def test_telechat2_7b_with_eight_gigabytes() -> None:
    config = {**find_recipe("telechat2_7b").recipe.architecture}
    found = forecast(FAMILIES["telechat"], config, 8192, (1, 1), "float16", Budget())
    assert found.kv_blocks == 136
    assert found.kv_tokens == 17408
    assert found.full_sequences == 2
    assert found.kv_bytes_per_token * 128 == 60 * 2**20
    assert "136 blocks of 128 = 17,408 tokens = 2 full sequences" in found.lines()[2]


def test_heads_are_shared_between_devices() -> None:
    config = {**find_recipe("telechat2_7b").recipe.architecture}
    found = forecast(FAMILIES["telechat"], config, 8192, (1, 1), "float32", Budget(world_size=2))
    assert found.kv_blocks == 136


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (60 * 2**20, "60.0 MiB"),
        (2**40, "1.0 TiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_size_text(count: int, text: str) -> None:
    assert size_text(count) == text
