"""Reads every input of a package and checks them against each other; reports all problems at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.adapters.adapter import Adapter
from builder.adapters.read import AdapterReader
from builder.architecture import Architecture, Source, checked_value, merge
from builder.checkpoints.ready_made_weights import is_ready_made, read_packed
from builder.checkpoints.weight_files import Weights, check_tensors
from builder.conversion.foreign import read_weights
from builder.conversion.subject import Subject
from builder.families import family_named
from builder.families.base import Family
from builder.hf_folder import classic_spelling
from builder.mindformers_yaml import ModelYaml, extension, read_model_yaml
from builder.quantization import CONFIG_KEY as QUANTIZATION
from builder.quantization import Quantization, parameter_count, read_quantization
from builder.ready_made import BESIDE, ReadyMade, read_ready_made
from builder.recipe import TEMPLATES_FOLDER, Recipe, RecipeFile
from builder.sources import Locations, Requested, locate
from builder.tokenizer.files import (
    CHAT_TEMPLATE,
    TOKENIZER_CONFIG,
    TokenizerFiles,
    TokenizerInputs,
    build_tokenizer,
    read_json_object,
)
from contract.faults import Fault, FaultKind, Problem, fault_of_problems, problems_of


@dataclass(frozen=True)
class Inputs:
    """Everything read, sound and consistent."""

    recipe: Recipe
    family: Family
    locations: Locations
    yaml: ModelYaml | None
    hf_config: dict[str, Any]
    """The publisher's config.json, aliases resolved; empty when there is none."""
    generation: dict[str, Any]
    """The publisher's generation_config.json; empty when there is none."""
    architecture: Architecture
    weights: Weights
    tokenizer: TokenizerFiles
    quantization: Quantization | None
    """Of the publisher's weights; ``None`` when they are plain."""
    adapter: Adapter | None = None
    """To merge into the weights."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """To serve beside them, by name."""

    @property
    def parameters(self) -> int:
        """Weights of the model, however they are stored."""
        if self.quantization is None:
            return self.weights.parameters
        return parameter_count(self.family, self.architecture.values)


class _Reader:
    """Collects problems while files are read one after the other."""

    def __init__(self, locations: Locations) -> None:
        self.locations = locations
        self.problems: list[Problem] = []

    def json(self, path: Path | None) -> dict[str, Any]:
        """The object in a file; empty when there is no file or no sound one."""
        found = read_json_object(path) if path is not None else {}
        if isinstance(found, Problem):
            self.problems.append(found)
            return {}
        return found

    def collect(self, fault: Fault) -> None:
        """Take a fault's problems, or the fault itself as one."""
        self.problems.extend(problems_of(fault))


def read_inputs(recipe_file: RecipeFile, requested: Requested) -> Inputs:
    """Find, read and check all inputs. Raises ``Fault`` with every problem found."""
    recipe = recipe_file.recipe
    family = family_named(recipe.family)
    locations = locate(recipe_file, requested)
    reader = _Reader(locations)
    yaml = _read_yaml(reader, family)
    config = classic_spelling(reader.json(locations.find("config.json")))
    hf_config = _resolve_aliases(family, config)
    form = _ready_made(reader, config)
    quantization = None if form else read_quantization(config, str(locations.find("config.json")))
    reader.problems.extend(_config_problems(family, hf_config))
    architecture = _merge(recipe, family, yaml, hf_config)
    reader.problems.extend(architecture.problems)
    reader.problems.extend(family.refuse({**hf_config, **architecture.values}))
    weights = _read_weights(reader, family, architecture)
    if form is not None and not architecture.problems and not weights.problems:
        weights, quantization = _read_packed(reader, form, weights, (family, architecture.values))
        if quantization is not None:
            config[QUANTIZATION] = hf_config[QUANTIZATION] = quantization.to_config()
    reader.problems.extend(weights.problems)
    if not architecture.problems and weights.files and not weights.problems:
        reader.problems.extend(_tensor_problems(weights, family, architecture, config))
    generation = reader.json(locations.find("generation_config.json"))
    subject = Subject(family, {} if architecture.problems else architecture.values)
    adapters = AdapterReader(reader.problems, subject, requested.adapter_alpha)
    adapter = adapters.to_merge(requested.adapter, weights, quantization)
    beside = adapters.beside(recipe_file, requested.with_adapters)
    tokenizer = _read_tokenizer(reader, recipe_file, family, architecture)
    reader.problems.extend(_limit_problems(recipe, family, architecture))
    if reader.problems or tokenizer is None:
        raise fault_of_problems(FaultKind.INVALID_MODEL, f"the inputs of {recipe.name}", reader.problems)
    read = (yaml, hf_config, generation, architecture, weights, tokenizer, quantization, adapter, beside)
    return Inputs(recipe, family, locations, *read)


def _read_weights(reader: _Reader, family: Family, architecture: Architecture) -> Weights:
    values = None if architecture.problems else architecture.values
    try:
        return read_weights(reader.locations.weights, family, values)
    except Fault as fault:
        reader.collect(fault)
    except OSError as error:
        where = str(error.filename or reader.locations.weights)
        reader.problems.append(Problem(where, f"cannot be read: {error.strerror}", "check its permissions"))
    return Weights((), ())


def _ready_made(reader: _Reader, config: Mapping[str, Any]) -> ReadyMade | None:
    """How GPTQ or AWQ made the weights, by config.json or, as older writers have it, a file beside it."""
    if QUANTIZATION in config:
        return read_ready_made(config[QUANTIZATION], str(reader.locations.find("config.json")))
    for name in BESIDE:
        path = reader.locations.find(name)
        form = read_ready_made(reader.json(path), str(path))
        if form is not None:
            return form
    return None


def _read_packed(
    reader: _Reader, form: ReadyMade, weights: Weights, model: tuple[Family, Mapping[str, Any]]
) -> tuple[Weights, Quantization | None]:
    try:
        return read_packed(weights, form, *model)
    except Fault as fault:
        reader.collect(fault)
    except OSError as error:
        where = str(error.filename or reader.locations.weights)
        reader.problems.append(Problem(where, f"cannot be read: {error.strerror}", "check its permissions"))
    return Weights((), ()), None


def _tensor_problems(
    weights: Weights, family: Family, architecture: Architecture, config: Mapping[str, Any]
) -> list[Problem]:
    if QUANTIZATION not in config and is_ready_made(weights):
        message = "are quantized as GPTQ and AWQ do it, and config.json has no quantization_config"
        return [Problem("weights", message, "fetch config.json, or quantize_config.json, again")]
    quantized = {key: config[key] for key in (QUANTIZATION,) if key in config}
    return check_tensors(weights, family, {**architecture.values, **quantized})


def _read_yaml(reader: _Reader, family: Family) -> ModelYaml | None:
    if reader.locations.yaml is None:
        return None
    try:
        yaml = read_model_yaml(reader.locations.yaml, family)
    except Fault as fault:
        reader.collect(fault)
        return None
    reader.problems.extend(yaml.problems)
    return yaml


def _resolve_aliases(family: Family, config: dict[str, Any]) -> dict[str, Any]:
    resolved = {key: value for key, value in config.items() if key not in family.aliases}
    for alias, name in family.aliases.items():
        if alias in config:
            resolved.setdefault(name, config[alias])
    return resolved


def _config_problems(family: Family, config: dict[str, Any]) -> list[Problem]:
    problems = []
    stated = config.get("model_type")
    if stated is not None and stated not in family.model_types:
        message = f"is {stated!r}, the recipe's family is {family.name!r}"
        problems.append(Problem("config.json  model_type", message, "take the recipe of this model"))
    for rule in family.fields:
        value = config.get(rule.hf)
        if value is not None:
            _, expected = checked_value(rule.kind, value)
            if expected:
                problems.append(Problem(f"config.json  {rule.hf}", f"is {value!r}", f"write {expected}"))
    return problems


def _merge(recipe: Recipe, family: Family, yaml: ModelYaml | None, hf_config: dict[str, Any]) -> Architecture:
    names = [rule.hf for rule in family.fields]
    said = {}
    for name in names:
        if name == "extend_method" and name in hf_config:
            said[name] = extension(hf_config[name])
        elif hf_config.get(name) is not None:
            said[name] = hf_config[name]
    sources = [yaml.architecture()] if yaml is not None else []
    if hf_config:
        sources.append(Source("config.json", said))
    sources.append(
        Source("recipe", {name: recipe.architecture[name] for name in names if name in recipe.architecture})
    )
    sound = [Source(source.name, _sound(family, source)) for source in sources]
    return merge(family, sound)


def _sound(family: Family, source: Source) -> dict[str, Any]:
    """The values of the right type; the others are reported where they are read."""
    rules = {rule.hf: rule for rule in family.fields}
    return {
        name: value
        for name, value in source.values.items()
        if value is None or not checked_value(rules[name].kind, value)[1]
    }


def _read_tokenizer(
    reader: _Reader, recipe_file: RecipeFile, family: Family, architecture: Architecture
) -> TokenizerFiles | None:
    values, recipe = architecture.values, recipe_file.recipe
    config = reader.json(reader.locations.find_beside_tokenizer(TOKENIZER_CONFIG))
    ids = {role: _first_id(values.get(f"{role}_token_id")) for role in ("bos", "eos", "pad", "unk")}
    known = {role: found for role, found in ids.items() if found is not None}
    try:
        template = _outer_template(reader, recipe)
        vocab_size = values.get(family.vocab, 2**31)
        inputs = TokenizerInputs(
            path=reader.locations.tokenizer,
            config=config,
            template=template,
            vocab_size=vocab_size,
            token_ids=known,
            end_ids=_all_ids(values.get("eos_token_id")),
            adds_bos=family.adds_bos,
            control_tokens=_control_tokens(family, vocab_size),
            prefix=family.prefix,
            names_the_end=recipe_file.from_folder,
        )
        tokenizer = build_tokenizer(inputs)
    except Fault as fault:
        reader.collect(fault)
        return None
    except OSError as error:
        where = str(reader.locations.tokenizer)
        reader.problems.append(Problem(where, f"cannot be read: {error.strerror}", "check its permissions"))
        return None
    reader.problems.extend(tokenizer.problems)
    return tokenizer


def _control_tokens(family: Family, vocab_size: int) -> Mapping[int, str]:
    published = family.control_tokens
    return published.names if published is not None and published.vocab_size == vocab_size else {}


def _outer_template(reader: _Reader, recipe: Recipe) -> tuple[str, str] | None:
    path = reader.locations.find_beside_tokenizer(CHAT_TEMPLATE)
    if path is not None:
        return CHAT_TEMPLATE, path.read_text(encoding="utf-8")
    name = recipe.prompt.chat_template
    if name is None:
        return None
    template = TEMPLATES_FOLDER / Path(name).name
    if not template.is_file():
        message = f"recipe {recipe.name} names the chat template {name!r}, which does not exist"
        raise Fault(FaultKind.INVALID_CONFIG, message, "correct prompt.chat_template")
    return f"recipe {recipe.name}", template.read_text(encoding="utf-8")


def _first_id(value: Any) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and value >= 0 else None


def _all_ids(value: Any) -> tuple[int, ...]:
    return tuple(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))


def _limit_problems(recipe: Recipe, family: Family, architecture: Architecture) -> list[Problem]:
    values, problems = architecture.values, []
    if architecture.problems:
        return []
    context, wanted = family.longest_context(values), family.wanted_context(values)
    total, prompt = recipe.limits.max_seq_len, recipe.limits.max_input_tokens
    for where, length in (("recipe  limits.max_seq_len", total), ("seq_length", wanted)):
        if length is not None and length > context:
            remedy = f"lower it, or raise {family.context}"
            message = f"{length} is more than {family.context} ({context})"
            problems.append(Problem(where, message, remedy))
    longest = total or wanted
    if prompt is not None and isinstance(longest, int) and prompt >= longest:
        remedy = f"lower it to {longest - 1} or raise max_seq_len"
        problems.append(
            Problem(
                "recipe  limits.max_input_tokens", f"{prompt} is not below max_seq_len ({longest})", remedy
            )
        )
    return problems
