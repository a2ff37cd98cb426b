"""Reads adapter folders as PEFT, LLaMA-Factory and XTuner's converter write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.adapters.adapter import Adapter, Added, Change, LowRank, Saved
from builder.adapters.tensors import read_tensors
from contract.adapters import CONFIG_NAME, TENSORS_NAME, AdapterConfig, Part, parse_name, read_adapter_config
from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind, Problem, fault_of_problems

if TYPE_CHECKING:
    from builder.adapters.adapter import Floats

_NAMES = (TENSORS_NAME, "adapter_model.bin")


def read_peft(folder: Path) -> Adapter:
    """Raises ``Fault`` for an adapter that is damaged, or of a kind that nobody here computes."""
    config = read_adapter_config(folder)
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        message = f"{folder} has no {TENSORS_NAME}"
        raise Fault(FaultKind.NOT_FOUND, message, "name the folder that PEFT or LLaMA-Factory wrote")
    tensors = read_tensors(path)
    files = {name: sha256_of_file(folder / name) for name in (CONFIG_NAME, path.name)}
    changes = assemble(tensors.values, config, str(path))
    return Adapter(str(folder), changes, files, config.base_model, tensors.dtype)


def assemble(tensors: Mapping[str, Floats], config: AdapterConfig, where: str) -> dict[str, Change]:
    """Tensor of the base -> change. Raises ``Fault`` with every part that is missing or misshapen."""
    modules: dict[str, dict[Part, Floats]] = {}
    changes: dict[str, Change] = {}
    for name, values in tensors.items():
        target, part = parse_name(name)
        if part == "saved":
            changes[target] = Saved(values)
        else:
            modules.setdefault(target, {})[part] = values
    problems: list[Problem] = []
    for module, parts in modules.items():
        problem = _problem(parts, config.rank_of(module))
        if problem:
            problems.append(Problem(f"{where}  {module}", problem, "the adapter is damaged: fetch it again"))
        else:
            changes.update(_changes(module, parts, config.scale_of(module)))
    if problems:
        raise fault_of_problems(FaultKind.INVALID_MODEL, "the adapter", problems[:12])
    if not changes:
        hint = "name the folder that holds tensors ...lora_A... and ...lora_B..."
        raise Fault(FaultKind.INVALID_MODEL, f"{where} changes nothing: it holds no LoRA tensors", hint)
    return dict(sorted(changes.items()))


def _problem(parts: Mapping[Part, Floats], rank: int) -> str | None:
    pair: tuple[Part, Part] = ("embedding_A", "embedding_B") if "embedding_A" in parts else ("A", "B")
    missing = [part for part in pair if part not in parts]
    if missing:
        return f"lacks lora_{missing[0]}"
    a, b = (parts[part] for part in pair)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        return f"has lora_A of {list(a.shape)} and lora_B of {list(b.shape)}, which do not fit together"
    if a.shape[0] != rank:
        return f"has rank {a.shape[0]}, its config says {rank}"
    return None


def _changes(module: str, parts: Mapping[Part, Floats], scale: float) -> Iterable[tuple[str, Any]]:
    if "embedding_A" in parts:
        # An embedding is looked up: its change is the transpose of a linear layer's.
        yield f"{module}.weight", LowRank(parts["embedding_B"].T, parts["embedding_A"].T, scale)
        return
    yield f"{module}.weight", LowRank(parts["A"], parts["B"], scale, parts.get("magnitude"))
    if "bias" in parts:
        yield f"{module}.bias", Added(parts["bias"] * scale)
