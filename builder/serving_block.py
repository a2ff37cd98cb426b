"""The contents of config.json and generation_config.json."""

from __future__ import annotations

from typing import Any

from builder.adapters.beside import folder_of
from builder.inputs import Inputs
from contract.networks import KnownNetwork
from contract.serving import FORMAT_VERSION, Limits, Prompt, Serving

_DROPPED = ("auto_map", "dtype", "serving", "_name_or_path", "transformers_version")


def architecture_config(inputs: Inputs, dtype: str) -> dict[str, Any]:
    """The HuggingFace-shaped part of config.json: the publisher's keys, then the merged values over them."""
    family = inputs.family
    config = {key: value for key, value in inputs.hf_config.items() if key not in _DROPPED}
    for key, value in family.constants.items():
        config.setdefault(key, value)
    accepted = {name.lower() for name in family.architectures}
    stated = config.get("architectures")
    known = isinstance(stated, list) and any(str(name).lower() in accepted for name in stated)
    if not known:
        config["architectures"] = [family.architectures[0]]
    config["model_type"] = family.model_type
    config["torch_dtype"] = dtype
    config.update(inputs.architecture.values)
    return config


def generation_config(inputs: Inputs) -> dict[str, Any]:
    """generation_config.json: the publisher's file; where it is silent the yaml, then the recipe."""
    values = inputs.architecture.values
    ids: dict[str, Any] = {
        key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in values
    }
    from_yaml = inputs.yaml.generation() if inputs.yaml is not None else {}
    return {**inputs.recipe.generation, **from_yaml, **ids, **inputs.generation}


def serving_block(inputs: Inputs, dtype: str, network: KnownNetwork) -> Serving:
    """Everything a server must know beyond the architecture."""
    values, recipe = inputs.architecture.values, inputs.recipe
    longest = recipe.limits.max_seq_len or inputs.family.wanted_context(values)
    return Serving(
        format_version=FORMAT_VERSION,
        backend="ms",
        limits=Limits(max_seq_len=longest, max_input_tokens=recipe.limits.max_input_tokens or longest - 1),
        dtype=dtype,
        network=network.name,
        layer_api=network.layer_api,
        family=inputs.family.name,
        prompt=Prompt(
            chat_template="chat_template.jinja" if inputs.tokenizer.has_template else None,
            add_bos=inputs.tokenizer.add_bos,
            prefix_ids=list(inputs.tokenizer.prefix_ids),
        ),
        tokenizer="tokenizer.json",
        bos_token_id=values.get("bos_token_id"),
        eos_token_ids=_end_ids(inputs),
        pad_token_id=values.get("pad_token_id"),
        adapters={name: folder_of(name) for name in sorted(inputs.adapters)},
    )


def _end_ids(inputs: Inputs) -> list[int]:
    ids: list[int] = []
    values, end = inputs.architecture.values, inputs.tokenizer.eos_id
    for value in (values.get("eos_token_id"), inputs.generation.get("eos_token_id"), end):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and item not in ids:
                ids.append(item)
    return ids
