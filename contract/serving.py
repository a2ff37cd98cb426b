"""The block ``serving`` of a model directory's config.json: what a server must know beyond the architecture.

The builder writes it, the daemon and other readers read it. Paths are relative to the version's folder.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from contract.faults import Fault, FaultKind

ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FORMAT_VERSION = 1
"""Of the model directory. A reader refuses a newer one."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_seq_len: int
    """Prompt and answer together, in tokens."""
    max_input_tokens: int
    """Prompt alone; at most ``max_seq_len - 1``."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    chat_template: str | None = None
    """File with the model's jinja2 chat template; ``None``: the model has no chat form."""
    add_bos: bool = False
    """A raw prompt gets the beginning token in front."""
    prefix_ids: list[int] = []
    """A raw prompt gets these tokens in front, unless it begins with them."""


class Serving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    format_version: int
    backend: str
    limits: Limits
    dtype: str = "auto"
    """Weights as stored: ``float32``, ``float16``, ``bfloat16`` ..."""
    network: str | None = None
    """The network's .py for the ``ms`` backend."""
    layer_api: int | None = None
    """Version of the layer API that the network was written for."""
    family: str | None = None
    prompt: Prompt = Prompt()
    tokenizer: str | None = None
    """File that the ``tokenizers`` library reads: ``tokenizer.json``."""
    bos_token_id: int | None = None
    eos_token_ids: list[int] = []
    pad_token_id: int | None = None
    adapters: dict[str, str] = {}
    """LoRA adapters served besides: name -> folder in PEFT's form."""
    options: dict[str, Any] = {}
    """Passed to the backend as they are."""


def read_config(directory: Path) -> dict[str, Any]:
    """The whole config.json of a version's folder. Raises ``Fault``."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        hint = "package it with: builder package --model NAME"
        raise Fault(FaultKind.INVALID_MODEL, f"{directory} has no config.json", hint) from None
    except (OSError, ValueError, RecursionError) as error:
        hint = "package the model again with: builder package --replace"
        raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error}", hint) from None
    if not isinstance(config, dict):
        raise Fault(FaultKind.INVALID_MODEL, f"{path} must hold a JSON object")
    return config


def read_serving(directory: Path) -> Serving:
    """The serving block of a version's folder. Raises ``Fault``."""
    config = read_config(directory)
    path = directory / "config.json"
    if "serving" not in config:
        hint = "package it with: builder package --model FOLDER"
        raise Fault(FaultKind.INVALID_MODEL, f'{path} has no block "serving"', hint)
    return parse_serving(config["serving"], directory)


def parse_serving(block: Any, directory: Path) -> Serving:
    """A serving block as read from the config.json of ``directory``. Raises ``Fault``."""
    try:
        serving = msgspec.convert(block, Serving)
    except msgspec.ValidationError as error:
        message = f'{directory / "config.json"}, block "serving": {error}'
        raise Fault(FaultKind.INVALID_MODEL, message, "package the model again") from None
    if serving.format_version > FORMAT_VERSION:
        message = (
            f"{directory} has format version {serving.format_version}; this MindPort reads {FORMAT_VERSION}"
        )
        raise Fault(FaultKind.INVALID_MODEL, message, "upgrade MindPort, or package the model again")
    for path in _paths(serving):
        if path.is_absolute() or ".." in path.parts:
            message = f'{directory / "config.json"}, block "serving": {path} is outside the model directory'
            raise Fault(FaultKind.INVALID_MODEL, message, "package the model again")
    strange = [name for name in serving.adapters if not ADAPTER_NAME.fullmatch(name)]
    if strange:
        message = f'{directory / "config.json"}, block "serving": {strange[0]!r} cannot be an adapter\'s name'
        raise Fault(FaultKind.INVALID_MODEL, message, "package the model again")
    return serving


def _paths(serving: Serving) -> list[PurePosixPath]:
    """All that it names."""
    files = (serving.network, serving.tokenizer, serving.prompt.chat_template, *serving.adapters.values())
    return [PurePosixPath(file) for file in files if file is not None]
