"""The recipe that the documents add is a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

from builder.package import Order, plan_order
from builder.recipe import load_recipe
from tests.builder.published import tokenizer_of, write_weights

DOCUMENT = Path(__file__).parents[3] / "docs" / "en" / "models.md"


def test_one_file_is_one_more_model(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(name: yi_6b\n.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert found is not None
    path = tmp_path / "yi_6b.yaml"
    path.write_text(found[1])
    recipe = load_recipe(path)
    sources = tmp_path / "yi_6b"
    sources.mkdir()
    write_weights(sources / "model.safetensors", recipe.family, recipe.architecture)
    (sources / "tokenizer.model").write_bytes(tokenizer_of("llama", 1000))
    inputs, plan = plan_order(Order(model=str(path), out=tmp_path / "out"))
    assert inputs.parameters == 6_061_035_520
    assert (plan.serving.network, plan.serving.limits.max_seq_len) == ("decoder.py", 4096)
    assert json.loads(plan.files["config.json"])["rope_theta"] == 5000000.0
