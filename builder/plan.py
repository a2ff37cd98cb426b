"""Inputs -> Plan: every file that will be written, its content or its source. Pure: touches nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from builder.checkpoints.dtypes import converted_header, stored_dtype
from builder.checkpoints.safetensors_header import Header
from builder.checkpoints.weight_files import INDEX_NAME, SINGLE_NAME, WeightFile
from builder.forecast import Budget, Forecast, forecast, size_text
from builder.inputs import Inputs
from builder.mindformers_yaml import package_yaml
from builder.rendering import render_card, render_pbtxt
from builder.serving_block import architecture_config, generation_config, serving_block
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


@dataclass(frozen=True)
class Network:
    """The network's file and its entry in the list of known ones."""

    known: KnownNetwork
    content: bytes


@dataclass(frozen=True)
class PlannedWeights:
    """One weight file to be copied, linked or converted."""

    source: WeightFile
    method: Literal["copy", "link", "convert"]
    header: Header
    """As it will be written."""

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
    forecast: Forecast
    notes: tuple[str, ...]
    fingerprint: str
    """SHA-256 of everything that determines the content, weights by name, size and header only."""

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
    weights = _plan_weights(inputs, options)
    dtype = stored_dtype(inputs.weights, options.dtype)
    serving = serving_block(inputs, dtype, network.known)
    yaml_name = f"predict_{options.name}.yaml"
    values = inputs.architecture.values
    yaml, removed = package_yaml(yaml_base, inputs.family, values, inputs.tokenizer.vocab_file)
    notes = _notes(inputs, None if options.dtype else dtype, removed)
    sizes = (sum(entry.size for entry in weights), inputs.weights.parameters)
    foreseen = forecast(inputs.family, values, serving.limits.max_seq_len, sizes, dtype, Budget())
    config = {**architecture_config(inputs, dtype), "serving": msgspec.to_builtins(serving)}
    files = {
        **inputs.tokenizer.files,
        "config.json": canonical_json(config),
        "generation_config.json": canonical_json(generation_config(inputs)),
        network.known.name: network.content,
        yaml_name: yaml,
        CARD_NAME: _card(inputs, options, serving, foreseen, notes),
    }
    if len(weights) > 1 or weights[0].name != SINGLE_NAME:
        files[INDEX_NAME] = _index(weights)
    files = dict(sorted(files.items()))
    return Plan(
        model=options.name,
        recipe=inputs.recipe.name,
        files=files,
        weights=weights,
        pbtxt=render_pbtxt(options.name, inputs.recipe.title, BACKEND),
        serving=serving,
        forecast=foreseen,
        notes=tuple(notes),
        fingerprint=_fingerprint(files, weights),
    )


def _plan_weights(inputs: Inputs, options: Options) -> tuple[PlannedWeights, ...]:
    planned = []
    for file in inputs.weights.files:
        header = converted_header(file.header, options.dtype) if options.dtype else file.header
        if header is not file.header:
            planned.append(PlannedWeights(file, "convert", header))
        else:
            planned.append(PlannedWeights(file, "link" if options.link else "copy", header))
    return tuple(planned)


def _index(weights: tuple[PlannedWeights, ...]) -> bytes:
    places = {tensor.name: entry.name for entry in weights for tensor in entry.header.tensors}
    total = sum(tensor.end - tensor.start for entry in weights for tensor in entry.header.tensors)
    return canonical_json({"metadata": {"total_size": total}, "weight_map": places})


def _notes(inputs: Inputs, dtype: str | None, removed: list[str]) -> list[str]:
    notes = [str(disagreement) for disagreement in inputs.architecture.disagreements]
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
    return notes


def _card(inputs: Inputs, options: Options, serving: Serving, foreseen: Forecast, notes: list[str]) -> bytes:
    recipe = inputs.recipe
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
            "dtype": serving.dtype,
            "vocab_size": inputs.architecture.values["vocab_size"],
            "max_seq_len": serving.limits.max_seq_len,
            "max_input_tokens": serving.limits.max_input_tokens,
            "kv_per_token": size_text(foreseen.kv_bytes_per_token),
            "kv_per_sequence": size_text(foreseen.kv_bytes_per_sequence),
            "kv_dtype": foreseen.kv_dtype,
            "has_template": inputs.tokenizer.has_template,
            "probes": inputs.tokenizer.probes,
            "network": serving.network,
            "yaml_name": f"predict_{options.name}.yaml",
            "notes": notes,
        }
    )


def _fingerprint(files: Mapping[str, bytes], weights: tuple[PlannedWeights, ...]) -> str:
    facts = {
        "format": FORMAT_VERSION,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "weights": {
            entry.name: {
                "size": entry.source.header.size,
                "header": entry.source.header.sha256,
                "convert": [tensor.dtype for tensor in entry.header.tensors]
                if entry.method == "convert"
                else None,
            }
            for entry in weights
        },
    }
    return hashlib.sha256(canonical_json(facts)).hexdigest()
