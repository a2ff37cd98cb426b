"""Adapters that a version brings to be served beside its weights: checked, and written in PEFT's form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from builder.adapters.adapter import Adapter, LowRank
from builder.checkpoints.dtypes import narrowed
from builder.checkpoints.safetensors_header import TensorEntry, write_header
from builder.families.base import Family
from contract.adapters import CONFIG_NAME, TENSORS_NAME
from contract.faults import Problem
from contract.manifest import canonical_json

_MERGE = "merge it into the weights: --adapter"


def folder_of(name: str) -> str:
    """Where it lies in the version's folder."""
    return f"adapters/{name}"


def check_beside(adapter: Adapter, family: Family, values: Mapping[str, Any]) -> list[Problem]:
    """What of an adapter cannot be computed beside the weights of a model."""
    changeable = {f"{module}.weight" for module in family.adaptable_modules(values)}
    problems = []
    for name, change in adapter.changes.items():
        reason = None
        if not isinstance(change, LowRank):
            reason = "is trained whole, or added to a bias"
        elif change.magnitude is not None:
            reason = "is changed by DoRA, which scales the rows of the sum"
        elif name not in changeable:
            reason = "is no linear layer that an adapter can change while the model is served"
        if reason is not None:
            problems.append(Problem(f"{adapter.source}  {name}", reason, _MERGE))
    return problems[:8]


def adapter_files(adapter: Adapter) -> dict[str, bytes]:
    """Its two files, by name. Every half keeps the dtype it was stored in."""
    changes = {name: change for name, change in adapter.changes.items() if isinstance(change, LowRank)}
    modules = {name.removesuffix(".weight"): change for name, change in changes.items()}
    entries: list[TensorEntry] = []
    content = bytearray()
    for module, change in modules.items():
        for half, values in (("A", change.a), ("B", change.b)):
            start = len(content)
            content += narrowed(values, adapter.dtype)
            name = f"base_model.model.{module}.lora_{half}.weight"
            entries.append(TensorEntry(name, adapter.dtype, values.shape, start, len(content)))
    header = write_header(entries, {"format": "pt"})
    return {CONFIG_NAME: canonical_json(_config(adapter, modules)), TENSORS_NAME: header + content}


def _config(adapter: Adapter, modules: Mapping[str, LowRank]) -> dict[str, Any]:
    ranks = {module: change.a.shape[0] for module, change in modules.items()}
    alphas = {module: _tidy(change.scale * ranks[module]) for module, change in modules.items()}
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(module): found for module, found in ranks.items() if found != rank},
        "alpha_pattern": {re.escape(module): found for module, found in alphas.items() if found != alpha},
    }


def _tidy(value: float) -> float:
    return int(value) if value == int(value) else value
