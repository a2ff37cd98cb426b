"""Inputs -> Plan: every file that will be written, its content or its source. Pure: touches nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from builder.adapters.beside import adapter_files, folder_of
from builder.checkpoints.dtypes import converted_header, stored_dtype
from builder.checkpoints.group_quantizer import QUANTIZER_VERSION
from builder.checkpoints.rewrite import Changes, rewritten_header
from builder.checkpoints.safetensors_header import Header
from builder.checkpoints.weight_files import INDEX_NAME, SINGLE_NAME, WeightFile
from builder.forecast import Budget, Forecast, forecast, size_text
from builder.inputs import Inputs
from builder.mindformers_yaml import TOKENIZER_FILE, package_yaml
from builder.quantization import Quantization, plan_quantization, quantized_modules
from builder.recipe import TEMPLATES_FOLDER
from builder.rendering import render_card, render_pbtxt
from builder.serving_block import architecture_config, generation_config, serving_block
from contract.faults import Fault, FaultKind
from contract.manifest import canonical_json
from contract.networks import KnownNetwork
from contract.serving import FORMAT_VERSION, Serving

BACKEND = "ms"
CARD_NAME = "README.md"


@dataclass(frozen=True)
class Options:
    """What the user decides about the result."""

    name: str
    dtype: str | None = None
    """Convert the weights; ``None`` keeps them as they are."""
    link: bool = False
    quantize: str | None = None
    """``int8`` or ``int4``; ``None`` keeps floats."""
    group_size: int | None = None
    search_clip: bool = False
    """Spend time on better scales."""


@dataclass(frozen=True)
class Network:
    """The network's file and its entry in the list of known ones."""

    known: KnownNetwork
    content: bytes


@dataclass(frozen=True)
class PlannedWeights:
    """One weight file to be copied, linked, converted or written anew."""

    source: WeightFile
    method: Literal["copy", "link", "convert", "rewrite"]
    header: Header
    """As it will be written."""
    changes: Changes = field(default_factory=Changes)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def size(self) -> int:
        return self.header.size


@dataclass(frozen=True)
class Plan:
    model: str
    recipe: str
    files: dict[str, bytes]
    """Small files by name, complete."""
    weights: tuple[PlannedWeights, ...]
    pbtxt: bytes
    serving: Serving
    quantization: Quantization | None
    forecast: Forecast
    notes: tuple[str, ...]
    fingerprint: str
    """SHA-256 of everything that determines the content, weights by name, size and header only."""
    allow_nonfinite: bool = False
    """Keep infinite and NaN weights."""

    @property
    def size(self) -> int:
        """Bytes of the finished directory, without its manifest."""
        return sum(map(len, self.files.values())) + sum(entry.size for entry in self.weights)

    @property
    def new_bytes(self) -> int:
        """Bytes that the file system must have free."""
        linked = sum(entry.size for entry in self.weights if entry.method == "link")
        return self.size - linked


def build_plan(inputs: Inputs, options: Options, network: Network, yaml_base: Mapping[str, Any]) -> Plan:
    """Decide every file of the model directory."""
    quantization = _quantization(inputs, options)
    weights = _plan_weights(inputs, options, quantization)
    dtype = stored_dtype(inputs.weights, options.dtype)
    serving = serving_block(inputs, quantization.dtype if quantization else dtype, network.known)
    yaml_name = f"predict_{options.name}.yaml"
    values = inputs.architecture.values
    yaml, removed = package_yaml(yaml_base, inputs.family, values, inputs.tokenizer.vocab_file)
    notes = _notes(inputs, None if options.dtype else dtype, removed)
    notes.extend(_change_notes(weights, quantization, inputs.family.linear_modules(values)))
    sizes = (sum(entry.size for entry in weights), inputs.parameters)
    foreseen = forecast(inputs.family, values, serving.limits.max_seq_len, sizes, dtype, Budget())
    config = {**architecture_config(inputs, dtype), "serving": msgspec.to_builtins(serving)}
    if quantization is not None:
        config["quantization_config"] = inputs.hf_config.get("quantization_config", quantization.to_config())
    files = {
        **inputs.tokenizer.files,
        "config.json": canonical_json(config),
        "generation_config.json": canonical_json(generation_config(inputs)),
        network.known.name: network.content,
        yaml_name: yaml,
        TOKENIZER_FILE: (TEMPLATES_FOLDER / TOKENIZER_FILE).read_bytes(),
        CARD_NAME: _card(inputs, options, (serving, quantization), foreseen, notes),
    }
    if len(weights) > 1 or weights[0].name != SINGLE_NAME:
        files[INDEX_NAME] = _index(weights)
    files = dict(sorted({**files, **_adapter_files(inputs, options.name)}.items()))
    return Plan(
        model=options.name,
        recipe=inputs.recipe.name,
        files=files,
        weights=weights,
        pbtxt=render_pbtxt(options.name, inputs.recipe.title, BACKEND),
        serving=serving,
        quantization=quantization,
        forecast=foreseen,
        notes=tuple(notes),
        fingerprint=_fingerprint(files, weights),
    )


def _adapter_files(inputs: Inputs, model: str) -> dict[str, bytes]:
    if model in inputs.adapters:
        message = (
            f"an adapter cannot have the name of its model, {model!r}: requests could not tell them apart"
        )
        raise Fault(FaultKind.INVALID_CONFIG, message, "give the adapter another name")
    return {
        f"{folder_of(name)}/{file}": content
        for name, adapter in inputs.adapters.items()
        for file, content in adapter_files(adapter).items()
    }


def _quantization(inputs: Inputs, options: Options) -> Quantization | None:
    if options.quantize is None:
        return inputs.quantization
    if inputs.quantization is not None:
        message = f"the weights of {inputs.recipe.name} are quantized already: {inputs.quantization}"
        raise Fault(FaultKind.UNSUPPORTED, message, "leave out --quantize, or take unquantized weights")
    return plan_quantization(
        options.quantize,
        options.group_size,
        inputs.family,
        inputs.architecture.values,
        search_clip=options.search_clip,
    )


def _plan_weights(
    inputs: Inputs, options: Options, quantization: Quantization | None
) -> tuple[PlannedWeights, ...]:
    values, family = inputs.architecture.values, inputs.family
    redundant = frozenset(name for name in inputs.weights.tensors if family.is_redundant(name, values))
    new = quantization if options.quantize else None
    modules = quantized_modules(new, family, values) if new else frozenset()
    merges = inputs.adapter.changes if inputs.adapter is not None else {}
    changes = Changes(options.dtype, new, modules, redundant, merges)
    planned = []
    for file in inputs.weights.files:
        if new or (redundant | merges.keys()) & {tensor.name for tensor in file.header.tensors}:
            rewritten = rewritten_header(file.header, changes)
            if rewritten is not file.header:
                planned.append(PlannedWeights(file, "rewrite", rewritten, changes))
                continue
        header = converted_header(file.header, options.dtype) if options.dtype else file.header
        if header is not file.header:
            planned.append(PlannedWeights(file, "convert", header))
        else:
            planned.append(PlannedWeights(file, "link" if options.link else "copy", header))
            _check_link(planned[-1])
    return tuple(planned)


def _check_link(weights: PlannedWeights) -> None:
    if weights.method == "link" and weights.source.assembly is not None:
        message = f"{weights.source.path} cannot be linked: its weights get other names or another form"
        raise Fault(FaultKind.UNSUPPORTED, message, "leave out --link")


def _index(weights: tuple[PlannedWeights, ...]) -> bytes:
    places = {tensor.name: entry.name for entry in weights for tensor in entry.header.tensors}
    total = sum(tensor.end - tensor.start for entry in weights for tensor in entry.header.tensors)
    return canonical_json({"metadata": {"total_size": total}, "weight_map": places})


def _notes(inputs: Inputs, dtype: str | None, removed: list[str]) -> list[str]:
    notes = [str(disagreement) for disagreement in inputs.architecture.disagreements]
    if inputs.weights.note:
        notes.append(f"weights: made of {inputs.weights.note}")
    stated = inputs.hf_config.get("torch_dtype") or inputs.hf_config.get("dtype")
    if dtype is not None and isinstance(stated, str) and stated != dtype:
        notes.append(f"torch_dtype: config.json says {stated!r}, the weights are stored as {dtype!r}")
    if inputs.yaml is not None:
        for key, value in inputs.yaml.generation().items():
            if key in inputs.generation and inputs.generation[key] != value:
                ours = inputs.generation[key]
                notes.append(
                    f"{key}: generation_config.json says {ours!r} and is followed; the yaml says {value!r}"
                )
    notes.extend(f"{key}: an absolute path was removed from the yaml" for key in removed)
    if inputs.adapter is not None:
        notes.append(f"merged the adapter {inputs.adapter}")
    notes.extend(f"{name}: serves the adapter {found}" for name, found in sorted(inputs.adapters.items()))
    return notes


def _change_notes(
    weights: tuple[PlannedWeights, ...],
    quantization: Quantization | None,
    linear: Iterable[tuple[str, int]],
) -> list[str]:
    changes = [entry.changes for entry in weights if entry.method == "rewrite"]
    left_out = sorted({name for change in changes for name in change.left_out})
    notes = [f"{name}: left out, the config ties it to the embedding" for name in left_out]
    if quantization is None:
        return notes
    kept = [name for name, _ in linear if name in quantization.ignore]
    rest = f"; not quantized: {', '.join(kept)}" if kept else ""
    found = "; the scale of every group was searched for" if quantization.search_clip else ""
    return [*notes, f"weights: {quantization}{found}{rest}"]


def _card(
    inputs: Inputs,
    options: Options,
    stored: tuple[Serving, Quantization | None],
    foreseen: Forecast,
    notes: list[str],
) -> bytes:
    recipe, (serving, quantization) = inputs.recipe, stored
    return render_card(
        {
            "name": options.name,
            "title": recipe.title,
            "description": recipe.description,
            "sentences": recipe.card,
            "family": recipe.family,
            "publisher": recipe.publisher,
            "parameters": foreseen.parameters,
            "weights_size": size_text(foreseen.weights_bytes),
            "weight_files": len(inputs.weights.files),
            "dtype": str(quantization or serving.dtype),
            "quantized": quantization is not None,
            "vocab_size": inputs.architecture.values[inputs.family.vocab],
            "max_seq_len": serving.limits.max_seq_len,
            "max_input_tokens": serving.limits.max_input_tokens,
            "kv_per_token": size_text(foreseen.kv_bytes_per_token),
            "kv_per_sequence": size_text(foreseen.kv_bytes_per_sequence),
            "kv_dtype": foreseen.kv_dtype,
            "has_template": inputs.tokenizer.has_template,
            "probes": inputs.tokenizer.probes,
            "network": serving.network,
            "adapters": sorted(inputs.adapters),
            "yaml_name": f"predict_{options.name}.yaml",
            "notes": notes,
        }
    )


def _conversion(entry: PlannedWeights) -> list[Any] | None:
    if entry.method == "rewrite":
        tensors = [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in entry.header.tensors]
        quantization = entry.changes.quantization
        search = ["clip-search"] if quantization is not None and quantization.search_clip else []
        return [QUANTIZER_VERSION, *search, *tensors]
    return [tensor.dtype for tensor in entry.header.tensors] if entry.method == "convert" else None


def _fingerprint(files: Mapping[str, bytes], weights: tuple[PlannedWeights, ...]) -> str:
    facts = {
        "format": FORMAT_VERSION,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "weights": {
            entry.name: {
                "size": entry.source.header.size,
                "header": entry.source.header.sha256,
                "convert": _conversion(entry),
            }
            for entry in weights
        },
    }
    return hashlib.sha256(canonical_json(facts)).hexdigest()
