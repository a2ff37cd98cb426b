"""What PEFT makes of an adapter by ``merge_and_unload``, ``builder package --adapter`` makes too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from builder.package import Order, package
from builder.progress import Progress
from builder.sources import Requested
from tests.builder.engines.conftest import Ask
from tests.builder.hf_models import LLAMA3, QWEN, write_folder

KINDS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "rslora": {"r": 9, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["v_proj", "up_proj"]},
    "patterns": {
        "r": 2,
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5, "k_proj": 3},
        "alpha_pattern": {"self_attn.k_proj": 20},
    },
    "saved": {"r": 3, "target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "gate_proj"]},
    "biases": {"r": 4, "target_modules": ["q_proj", "v_proj"], "bias": "all", "lora_bias": False},
    "lora_bias": {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_bias": True},
}
PROGRAM = """
import json, sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
here = Path(sys.argv[1])
for number, kind in enumerate(json.loads((here / "kinds.json").read_text())):
    torch.manual_seed(number)
    model = AutoModelForCausalLM.from_pretrained(here / "base", dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **kind))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(here / f"adapter{number}")
    merged = model.merge_and_unload().state_dict()
    tied = model.base_model.model.config.tie_word_embeddings
    kept = {name: t.clone() for name, t in merged.items() if not (tied and name == "lm_head.weight")}
    save_file(kept, here / f"{number}.safetensors")
print("true")
"""


@pytest.mark.parametrize(
    ("base", "kinds"),
    [(LLAMA3, list(KINDS)[:6]), (QWEN, ["lora", "biases", "lora_bias"])],
    ids=["llama", "qwen2"],
)
def test_weights_are_merged_as_peft_merges_them(
    ask: Ask, tmp_path: Path, base: Mapping[str, Any], kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "base", base)
    (tmp_path / "kinds.json").write_text(json.dumps([KINDS[kind] for kind in kinds]))
    ask(PROGRAM, tmp_path)
    for number, kind in enumerate(kinds):
        requested = Requested(adapter=tmp_path / f"adapter{number}")
        order = Order(model=str(tmp_path / "base"), name=kind, requested=requested, out=tmp_path / "out")
        ours = load_file(package(order, Progress(quiet=True)).path / "model.safetensors")
        theirs = load_file(tmp_path / f"{number}.safetensors")
        assert ours.keys() == theirs.keys(), kind
        for name, expected in theirs.items():
            np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=2e-6, err_msg=f"{kind} {name}")
