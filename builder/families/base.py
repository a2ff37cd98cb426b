"""What a family of models is, as data: its fields and their names in each config, its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from contract.faults import Problem

Kind = Literal["int", "float", "bool", "str", "ids", "any"]
"""``ids``: one token id or a list of them."""


@dataclass(frozen=True)
class FieldRule:
    """One architecture value and what each source calls it."""

    hf: str
    """Its key in config.json."""
    kind: Kind
    yaml: str | None = None
    """Its key in the mindformers ``model_config``; ``block.key`` in one of the family's ``yaml_blocks``."""
    required: bool = False
    default: Any = None
    """When no source has it; ``None`` leaves it out."""
    same_as: tuple[str, ...] = ()
    """When no source has it, the value of the first of these other keys that has one."""
    minimum: float | None = None


@dataclass(frozen=True)
class TensorRule:
    """Name pattern -> shape. ``{layer}`` is each layer, ``{expert}`` each expert of it.

    A dimension is a sum of products of config keys and numbers: ``heads*head_dim+2*kv_heads*head_dim``.
    """

    pattern: str
    shape: tuple[str, ...]
    unless: str | None = None
    """Absent when this config key is true."""
    when: str | None = None
    """Present only when this config key is true."""
    linear: bool = False
    """The matrix of a linear layer: what quantization is for."""


@dataclass(frozen=True)
class ControlTokens:
    """Control strings of a published vocabulary, where its tokenizer_config.json may not name them."""

    vocab_size: int
    """Only of vocabularies of this size."""
    names: Mapping[int, str]


@dataclass(frozen=True)
class Family:
    name: str
    model_type: str
    architectures: tuple[str, ...]
    """Accepted spellings, any case; the first is written when the publisher says none."""
    yaml_types: tuple[str, ...]
    """``model_config.type`` values that describe this family."""
    fields: tuple[FieldRule, ...]
    aliases: Mapping[str, str]
    """Other spellings of config.json keys."""
    constants: Mapping[str, Any]
    """Further config.json keys that readers expect, when the publisher's file has none."""
    yaml_keys: Mapping[str, Kind]
    """Every key a ``model_config`` may have."""
    tensors: tuple[TensorRule, ...]
    layers: str
    """The config key that counts the layers."""
    heads: str
    kv_heads: str
    context: str
    """The config key with the longest sequence, where ``seq_length`` sets no other limit."""
    network: str
    """File of the ``ms`` backend's network."""
    yaml_template: str
    """File in builder/templates: the mindformers yaml when the user brings none."""
    yaml_arch: str
    """``arch.type`` of the mindformers yaml."""
    head: str = "lm_head"
    """The linear layer that makes logits."""
    unit_head: bool = False
    """Its rows count as divided by their lengths."""
    vocab: str = "vocab_size"
    experts: str = "num_experts"
    """The config key that counts the experts of a layer."""
    other_model_types: tuple[str, ...] = ()
    """Further accepted ``model_type`` values."""
    yaml_blocks: Mapping[str, Mapping[str, Kind]] = field(default_factory=dict)
    """Further blocks of the yaml, beside ``model``, with every key they may have."""
    yaml_values: Mapping[str, Any] = field(default_factory=dict)
    """What every ``model_config`` of this family says."""
    adds_bos: bool = False
    """A SentencePiece tokenizer of this family puts the beginning token first unless its config says no."""
    control_tokens: ControlTokens | None = None
    prefix: tuple[str, ...] = ()
    """Control strings that begin every text."""
    chat_template: str | None = None
    """File in builder/templates, for a folder that brings none."""
    ignored_tensors: tuple[str, ...] = ()
    """Patterns of tensors that checkpoints carry and no network needs."""
    rules: tuple[ConsistencyRule, ...] = field(default=())
    longest: Callable[[Mapping[str, Any]], int] | None = None
    """The longest sequence that a config allows, where that may be more than ``context`` says."""
    refuse: Callable[[Mapping[str, Any]], list[Problem]] = lambda config: []
    """What a config.json of this family asks for and the network does not do."""

    @property
    def model_types(self) -> tuple[str, ...]:
        return (self.model_type, *self.other_model_types)

    def rule_of(self, hf: str) -> FieldRule | None:
        """The rule of a config.json key."""
        return next((rule for rule in self.fields if rule.hf == hf), None)

    def wanted_context(self, config: Mapping[str, Any]) -> int:
        """How long sequences are to be unless the recipe says."""
        return int(config.get("seq_length") or config[self.context])

    def longest_context(self, config: Mapping[str, Any]) -> int:
        """How long sequences may be."""
        return self.longest(config) if self.longest is not None else int(config[self.context])

    def head_dim(self, config: Mapping[str, Any]) -> int:
        """Width of one attention head."""
        return int(config.get("head_dim") or int(config["hidden_size"]) // int(config[self.heads]))

    def expected_tensors(self, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor that a checkpoint of this config must have."""
        for rule in self.tensors:
            names = list(self._names(rule, config))
            shape = tuple(self._dimension(text, config) for text in rule.shape) if names else ()
            for name in names:
                yield name, shape

    def linear_modules(self, config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
        """Name and input width of every linear layer that has a matrix of its own."""
        for rule in self.tensors:
            if rule.linear:
                for name in self._names(rule, config):
                    yield name.removesuffix(".weight"), self._dimension(rule.shape[1], config)

    def adaptable_modules(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Linear layers that adapters may change while a model is served: those of no expert."""
        for rule in self.tensors:
            if rule.linear and "{expert}" not in rule.pattern:
                names = (name.removesuffix(".weight") for name in self._names(rule, config))
                yield from (name for name in names if not (self.unit_head and name == self.head))

    def _names(self, rule: TensorRule, config: Mapping[str, Any]) -> Iterator[str]:
        absent = rule.unless is not None and bool(config.get(rule.unless))
        if absent or (rule.when is not None and not config.get(rule.when)):
            return
        for layer in range(int(config[self.layers])) if "{layer}" in rule.pattern else (0,):
            name = rule.pattern.replace("{layer}", str(layer))
            for expert in range(int(config[self.experts])) if "{expert}" in name else (0,):
                yield name.replace("{expert}", str(expert))

    def is_redundant(self, tensor: str, config: Mapping[str, Any]) -> bool:
        """Whether a config of this family goes without a tensor that others need: a tied head."""
        return any(
            rule.pattern == tensor and rule.unless is not None and bool(config.get(rule.unless))
            for rule in self.tensors
        )

    def is_ignored(self, tensor: str) -> bool:
        """Whether a surplus tensor is harmless."""
        return any(re.fullmatch(pattern, tensor) for pattern in self.ignored_tensors)

    def _dimension(self, text: str, config: Mapping[str, Any]) -> int:
        values = {**config, "head_dim": self.head_dim(config)}
        return sum(
            math.prod(int(part) if part.isdigit() else int(values[part]) for part in term.split("*"))
            for term in text.split("+")
        )


@dataclass(frozen=True)
class ConsistencyRule:
    """``value`` must be a multiple of, or at most, ``limit``; both are config keys."""

    value: str
    relation: Literal["multiple_of", "at_most", "below"]
    limit: str
    remedy: str
    unless: str | None = None
    """Not required when this config key has a value."""
