"""The model in a peer's own form, kept in the cache beside a record of what it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.environments import run


def convert(
    model: Path, command: list[str], result: Path, name: str, env: Mapping[str, str] | None = None
) -> None:
    """Run ``command``, which writes ``result``, unless it has for this model. Raises ``EngineError``."""
    record = result.with_name(f"{result.name}.json")
    made_of = json.dumps([(model / "config.json").read_text("utf-8"), command])
    if result.exists() and record.is_file() and record.read_text("utf-8") == made_of:
        return
    record.unlink(missing_ok=True)
    if result.is_dir():
        shutil.rmtree(result)
    result.parent.mkdir(parents=True, exist_ok=True)
    run(command, name, env)
    record.write_text(made_of, "utf-8")
