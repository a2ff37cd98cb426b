"""The mindformers-shaped ``predict_*.yaml``: read with a closed schema, written with relative paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder.architecture import Source, checked_value
from builder.families.base import Family, Kind
from builder.nearest import did_you_mean
from builder.yaml_document import YamlDocument, read_yaml
from contract.faults import FaultKind, Problem

_GENERATION_KEYS = {
    "do_sample": "do_sample",
    "top_k": "top_k",
    "top_p": "top_p",
    "temperature": "temperature",
    "repetition_penalty": "repetition_penalty",
    "max_decode_length": "max_length",
    "max_new_tokens": "max_new_tokens",
}
_NOT_EXTENDED = ("none", "null", "")

TOKENIZER_FILE = "mindformers_tokenizer.py"
"""In every model directory: mindformers has no class of its own for a plain tokenizer.json."""
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


class ModelYaml:
    """A user's yaml, checked."""

    def __init__(self, document: YamlDocument, family: Family) -> None:
        self.document = document
        self.family = family
        self.model_config = document.mapping_at("model", "model_config")
        self.problems = list(self._check())

    def architecture(self) -> Source:
        """What the yaml says about the architecture, under config.json names."""
        values = {}
        for rule in self.family.fields:
            said = self._value(rule.yaml) if rule.yaml is not None else None
            if said is not None:
                values[rule.hf], _ = checked_value(rule.kind, said)
        if "extend_method" in values:
            values["extend_method"] = extension(values["extend_method"])
        return Source(self.document.name, values)

    def _value(self, key: str) -> Any:
        block, _, inner = key.rpartition(".")
        return (self.document.mapping_at(block) if block else self.model_config).get(inner)

    def generation(self) -> dict[str, Any]:
        """Sampling defaults, under generation_config.json names."""
        return {
            hf: self.model_config[key] for key, hf in _GENERATION_KEYS.items() if key in self.model_config
        }

    def _check(self) -> list[Problem]:
        where = self.document.where
        if not self.model_config:
            return [
                Problem(
                    where(("model", "model_config")), "is missing", "add model: model_config: with the sizes"
                )
            ]
        problems = []
        stated = self.model_config.get("type")
        if stated is not None and stated not in self.family.yaml_types:
            expected = f"the recipe's family {self.family.name} is {self.family.yaml_types[0]}"
            problems.append(Problem(where(("model", "model_config", "type")), f"is {stated!r}", expected))
        problems.extend(self._check_keys(("model", "model_config"), self.family.yaml_keys))
        for block, keys in self.family.yaml_blocks.items():
            problems.extend(self._check_keys((block,), keys))
        problems.extend(self._check_blocks())
        problems.extend(self._check_extension())
        return problems

    def _check_extension(self) -> Iterator[Problem]:
        """Only some families extend by the yaml's word; the others do by config.json's."""
        method = extension(self.model_config.get("extend_method"))
        if method is not None and self.family.rule_of("extend_method") is None:
            place = self.document.where(("model", "model_config", "extend_method"))
            remedy = 'write "None", and rope_scaling in config.json if the model was trained so'
            yield Problem(place, f"is {method!r}; {self.family.name} models are not extended so", remedy)

    def _check_keys(self, path: tuple[str, ...], kinds: Mapping[str, Kind]) -> Iterator[Problem]:
        for key, value in self.document.mapping_at(*path).items():
            place = self.document.where((*path, key))
            kind = kinds.get(key)
            if kind is None:
                yield Problem(place, "unknown key", did_you_mean(str(key), kinds))
            elif value is not None:
                _, expected = checked_value(kind, value)
                if expected:
                    yield Problem(place, f"is {value!r}", f"write {expected}")

    def _check_blocks(self) -> list[Problem]:
        size, count = self.model_config.get("block_size"), self.model_config.get("num_blocks")
        length = self.model_config.get("seq_length")
        if not (isinstance(size, int) and isinstance(count, int) and isinstance(length, int)) or size < 1:
            return []
        if size * count >= length:
            return []
        message = f"{count} blocks of {size} hold {size * count} tokens, seq_length is {length}"
        remedy = f"write num_blocks: {-(-length // size)} or more"
        return [Problem(self.document.where(("model", "model_config", "num_blocks")), message, remedy)]


def extension(value: Any) -> str | None:
    """``extend_method`` as config.json has it: upper case, ``None`` when there is no extension."""
    text = "" if value is None else str(value)
    return None if text.lower() in _NOT_EXTENDED else text.upper()


def read_model_yaml(path: Path, family: Family) -> ModelYaml:
    """Read and check a user's yaml. Raises ``Fault`` when it is no yaml at all."""
    return ModelYaml(read_yaml(path, FaultKind.INVALID_CONFIG), family)


def package_yaml(
    base: Mapping[str, Any], family: Family, values: Mapping[str, Any], vocab_file: str | None
) -> tuple[bytes, list[str]]:
    """The yaml for a model directory: the merged architecture and relative paths only.

    Also returns the keys whose absolute path was removed.
    """
    import yaml

    removed: list[str] = []
    data = _without_absolute_paths(base, "", removed)
    data["load_checkpoint"] = "./"
    model = data.setdefault("model", {})
    model["model_config"] = {"type": family.yaml_types[0], **model.get("model_config", {})}
    model.setdefault("arch", {}).setdefault("type", family.yaml_arch)
    model_config = model["model_config"]
    model_config.update(family.yaml_values)
    for rule in family.fields:
        if rule.yaml is None or rule.hf not in values:
            continue
        block, _, key = rule.yaml.rpartition(".")
        place = data.setdefault(block, {}) if block else model_config
        if key in place or rule.required or values[rule.hf] != rule.default:
            place[key] = values[rule.hf]
    if "extend_method" in model_config or values.get("extend_method"):
        model_config["extend_method"] = values.get("extend_method") or "None"
    tokenizer = data.setdefault("processor", {}).setdefault("tokenizer", {})
    tokenizer["type"] = _TOKENIZER_CLASS
    reference = f"{TOKENIZER_FILE.removesuffix('.py')}.{_TOKENIZER_CLASS}"
    model_config["auto_map"] = {**(model_config.get("auto_map") or {}), "AutoTokenizer": [None, reference]}
    if vocab_file is not None:
        tokenizer["vocab_file"] = f"./{vocab_file}"
    handled = ("load_checkpoint", "processor.tokenizer.vocab_file")
    text = yaml.dump(data, Dumper=_plain_dumper(), sort_keys=False, allow_unicode=True, width=110)
    return text.encode(), [key for key in removed if key not in handled]


def _without_absolute_paths(value: Any, dotted: str, removed: list[str]) -> Any:
    if isinstance(value, Mapping):
        inner = {key: (item, f"{dotted}.{key}" if dotted else str(key)) for key, item in value.items()}
        return {key: _without_absolute_paths(item, name, removed) for key, (item, name) in inner.items()}
    if isinstance(value, list):
        return [
            _without_absolute_paths(item, f"{dotted}.{index}", removed) for index, item in enumerate(value)
        ]
    if isinstance(value, str) and value.startswith(("/", "~")):
        removed.append(dotted)
        return ""
    return value


def _plain_dumper() -> Any:
    """A dumper that repeats shared parts instead of writing anchors."""
    import yaml

    class PlainDumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return PlainDumper
