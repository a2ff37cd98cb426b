"""Reads adapters that are one file: XTuner's ``.pth``, and ``.ckpt`` or safetensors of mindformers.

Such a file does not say its alpha. It stands in the yaml that the training used, or the user says it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder.adapters.adapter import Adapter
from builder.adapters.peft import assemble
from builder.adapters.tensors import Tensors, read_tensors
from builder.yaml_document import read_yaml
from contract.adapters import CONFIG_NAME, AdapterConfig, parse_name, read_adapter_config
from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind

_PATTERNS = ("*.safetensors", "*.ckpt", "*.pth", "*.bin", "mp_rank_00_model_states.pt")
_DEFAULT_ALPHA = 16.0
"""mindformers'."""


def find_file(folder: Path) -> Path | None:
    """The only file with tensors in a folder."""
    found = [path for pattern in _PATTERNS for path in sorted(folder.glob(pattern)) if path.is_file()]
    return found[0] if len(found) == 1 else None


def read_single_file(path: Path, alpha: float | None) -> Adapter:
    """Raises ``Fault`` for what is no adapter, or damaged, or does not say its alpha."""
    tensors = read_tensors(path)
    whole = [name for name in tensors.values if parse_name(name)[1] == "saved"]
    if whole and len(whole) < len(tensors.values):
        message = f"{path} also holds {len(whole)} whole tensors, such as {whole[0]}"
        raise Fault(FaultKind.UNSUPPORTED, message, "save the trained LoRA parameters alone")
    config = _config(path, tensors, alpha)
    files = {path.name: sha256_of_file(path), "alpha": f"{config.alpha!r}"}
    changes = {} if whole else assemble(tensors.values, config, str(path))
    if not changes:
        hint = "name the file that holds tensors ...lora_A... and ...lora_B..."
        raise Fault(FaultKind.INVALID_MODEL, f"{path} changes nothing: it holds no LoRA tensors", hint)
    return Adapter(str(path), changes, files, config.base_model, tensors.dtype)


def _config(path: Path, tensors: Tensors, alpha: float | None) -> AdapterConfig:
    if alpha is None and (path.parent / CONFIG_NAME).is_file():
        return read_adapter_config(path.parent)
    if alpha is None:
        alpha = next(_alphas(path.parent), None)
    if alpha is None:
        message = f"{path} does not say its alpha, nor does a yaml with pet_config beside it"
        raise Fault(FaultKind.INVALID_REQUEST, message, "say it: --adapter-alpha 16")
    ranks = {}
    for name, values in tensors.values.items():
        module, part = parse_name(name)
        if part == "A" and values.ndim == 2:
            ranks[module] = values.shape[0]
    common = Counter(ranks.values()).most_common(1)
    return AdapterConfig(common[0][0] if common else 1, alpha, {**ranks})


def _alphas(folder: Path) -> Iterator[float]:
    """``lora_alpha`` of every ``pet_config`` in the yaml files of a folder."""
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
        for found in _pet_configs(read_yaml(path, FaultKind.INVALID_CONFIG).data):
            alpha = found.get("lora_alpha", _DEFAULT_ALPHA)
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
                message = f"{path}  pet_config.lora_alpha is {alpha!r}"
                raise Fault(FaultKind.INVALID_CONFIG, message, "write a positive number")
            yield float(alpha)


def _pet_configs(data: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if key == "pet_config" and isinstance(value, dict):
            yield value
        else:
            yield from _pet_configs(value)
