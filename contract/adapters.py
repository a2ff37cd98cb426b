"""LoRA adapters in PEFT's form: what ``adapter_config.json`` says, and what the tensors' names mean.

The arithmetic (``huggingface/peft``, ``tuners/lora``): a linear layer computes ``W x + s B A x`` with
``s = alpha / r``, or ``alpha / sqrt(r)`` with rank-stabilised LoRA. With DoRA the rows of ``W + s B A`` are
scaled to the lengths ``m``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from contract.faults import Fault, FaultKind, Problem, fault_of_problems

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"

Part = Literal["A", "B", "embedding_A", "embedding_B", "magnitude", "bias", "saved"]
"""``A`` [r, in], ``B`` [out, r], DoRA's ``magnitude`` [out], the ``bias`` [out] of B; of an embedding,
``embedding_A`` [r, vocabulary] and ``embedding_B`` [width, r]; or a whole tensor, ``saved``."""

_PREFIXES = ("llm.", "base_model.model.")
_PARTS: Mapping[str, Part] = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B",
    "lora_magnitude_vector": "magnitude",
    "mindpet_delta_lora_a": "A",
    "mindpet_delta_lora_b": "B",
    "tk_delta_lora_a": "A",
    "tk_delta_lora_b": "B",
    "lora_a": "A",
    "lora_b": "B",
}
_LORA_NAME = re.compile(
    rf"(?P<module>.+)\.(?P<part>{'|'.join(_PARTS)}|(?:mindpet|tk)_delta_lora_[AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<end>weight|bias))?"
)
_SAVED_NAME = re.compile(r"(?P<module>.+)\.modules_to_save(?:\.[^.]+)?\.(?P<end>weight|bias)")
_MAX_NUMBER = 2**31
_MAX_PATTERN = 200
_MAX_CHOICES = 4
"""Groups and repetitions in one expression."""
_MAX_MODULE = 200
_UNBOUNDED = re.compile(r"\)\s*[*+{]|\(\?(?!:)")
"""A group that repeats, or one that is not plain."""
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva")
_UNKNOWN = {
    "layer_replication": "repeats layers, which changes the network",
    "use_qalora": "is QA-LoRA, which quantizes the input",
    "alora_invocation_tokens": "is an activated LoRA, which begins inside the prompt",
    "trainable_token_indices": "trains single tokens of the embedding",
    "target_parameters": "adapts bare parameters rather than layers",
    "arrow_config": "routes between adapters",
}


@dataclass(frozen=True)
class AdapterConfig:
    """What the arithmetic needs of an ``adapter_config.json``."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    base_model: str | None = None

    def rank_of(self, module: str) -> int:
        return int(_match(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """``s`` of a module."""
        rank, alpha = self.rank_of(module), float(_match(self.alpha_pattern, module, self.alpha))
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def _match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that a module's path ends with, as PEFT matches them."""
    if len(module) <= _MAX_MODULE:
        ends = [module, *(module[dot.end() :] for dot in re.finditer(r"\.", module))]
        for pattern, value in patterns.items():
            if any(re.fullmatch(pattern, end) for end in ends):
                return value
    return default


def parse_name(name: str) -> tuple[str, Part]:
    """The module of the base model, or the tensor's own name for ``saved``, and which part of its change."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    name = name.replace(".base_layer.", ".")
    if found := _LORA_NAME.fullmatch(name):
        part = _PARTS[found["part"] if found["part"] in _PARTS else found["part"].lower()]
        return found["module"], "bias" if found["end"] == "bias" else part
    if found := _SAVED_NAME.fullmatch(name):
        return f"{found['module']}.{found['end']}", "saved"
    return name, "saved"


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read ``adapter_config.json``. Raises ``Fault`` for what is missing, malformed or cannot be computed."""
    path = folder / CONFIG_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{folder} is not an adapter: it has no {CONFIG_NAME}"
        raise Fault(
            FaultKind.NOT_FOUND, message, "name the folder that PEFT or LLaMA-Factory wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error}", "fetch it again") from None
    return parse_adapter_config(data, str(path))


def parse_adapter_config(data: Any, where: str) -> AdapterConfig:
    """Raises ``Fault`` with every problem found."""
    if not isinstance(data, dict):
        raise Fault(FaultKind.INVALID_MODEL, f"{where} is not a JSON object", "fetch it again")
    problems = [*_refused(data, where), *_malformed(data, where)]
    if problems:
        raise fault_of_problems(FaultKind.UNSUPPORTED, "the adapter", problems)
    return AdapterConfig(
        rank=data["r"],
        alpha=float(data.get("lora_alpha", 8)),
        rank_pattern=data.get("rank_pattern") or {},
        alpha_pattern=data.get("alpha_pattern") or {},
        rank_stabilised=bool(data.get("use_rslora")),
        base_model=data.get("base_model_name_or_path"),
    )


def _refused(data: Mapping[str, Any], where: str) -> list[Problem]:
    """What this form can say and nobody here computes."""
    problems = []
    kind = data.get("peft_type", "LORA")
    if kind != "LORA":
        problems.append(Problem(f"{where}  peft_type", f"is {kind!r}", "only LORA adapters can be used"))
    init = data.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        message = (
            f"is {init!r}: its training changed the base model's weights first, so it fits no plain base"
        )
        remedy = (
            "convert it to a plain LoRA first: save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
        problems.append(Problem(f"{where}  init_lora_weights", message, remedy))
    for key, reason in _UNKNOWN.items():
        if data.get(key):
            problems.append(Problem(f"{where}  {key}", reason, "merge it with PEFT and package the result"))
    return problems


def _malformed(data: Mapping[str, Any], where: str) -> list[Problem]:
    problems = []
    rank, alpha = data.get("r"), data.get("lora_alpha", 8)
    if not _is_number(rank, whole=True):
        problems.append(Problem(f"{where}  r", f"is {rank!r}", "write the rank, a positive whole number"))
    if not _is_number(alpha):
        problems.append(Problem(f"{where}  lora_alpha", f"is {alpha!r}", "write a positive number"))
    for key, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        pattern = data.get(key) or {}
        sound = isinstance(pattern, dict) and all(
            _is_regex(name) and _is_number(value, whole=whole) for name, value in pattern.items()
        )
        if not sound:
            problems.append(Problem(f"{where}  {key}", f"is {pattern!r}", "write module: positive number"))
    return problems


def _is_number(value: Any, *, whole: bool = False) -> bool:
    kinds = int if whole else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < _MAX_NUMBER


def _is_regex(text: str) -> bool:
    """An expression that every module's name is matched with in a bounded time, whoever wrote it."""
    choices = sum(map(text.replace("(?:", "(").count, "(*+?{"))
    if len(text) > _MAX_PATTERN or choices > _MAX_CHOICES or _UNBOUNDED.search(text):
        return False
    try:
        re.compile(text)
    except re.error:
        return False
    return True
