"""What the service knows of a loaded version beyond the backend: tokenizer, chat template, defaults."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.faults import Fault, FaultKind
from contract.serving import Serving
from daemon.repository.checks import check_directory
from daemon.repository.disk import VersionOnDisk
from daemon.service.chat import ChatTemplate
from daemon.service.defaults import GenerationDefaults, read_generation_defaults
from daemon.service.tokenizer import TextTokenizer

_VARIABLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """Read once when a version loads; never changes."""

    serving: Serving
    tokenizer: TextTokenizer | None
    template: ChatTemplate | None
    defaults: GenerationDefaults

    def need_tokenizer(self, name: str) -> TextTokenizer:
        """Raises ``Fault`` UNSUPPORTED for a model that takes token ids only."""
        if self.tokenizer is None:
            message = f"model {name} has no tokenizer"
            hint = "send token ids, or package the model with --tokenizer"
            raise Fault(FaultKind.UNSUPPORTED, message, hint)
        return self.tokenizer

    def need_template(self, name: str) -> ChatTemplate:
        """Raises ``Fault`` UNSUPPORTED for a model without a chat form."""
        if self.template is None:
            message = f"model {name} has no chat template"
            hint = "send a raw prompt, as client generate --raw does, or package a chat template"
            raise Fault(FaultKind.UNSUPPORTED, message, hint)
        return self.template


async def prepare_text_model(on_disk: VersionOnDisk) -> TextModel:
    """Check a folder and read its text side: the registry's ``prepare``. Raises ``Fault``."""
    return await asyncio.to_thread(_prepare, on_disk)


def _prepare(on_disk: VersionOnDisk) -> TextModel:
    serving = on_disk.serving
    if serving is None:
        message = (
            f'{on_disk.directory} has no block "serving", so backend {on_disk.backend} cannot serve it here'
        )
        raise Fault(FaultKind.UNSUPPORTED, message, "package it with: builder package")
    check_directory(on_disk.directory, manifest_required=serving.backend == "ms")
    tokenizer = None
    if serving.tokenizer:
        tokenizer = TextTokenizer.from_file(on_disk.directory / serving.tokenizer)
    controls = tokenizer.control_strings if tokenizer else ()
    return TextModel(
        serving=serving,
        tokenizer=tokenizer,
        template=_template(on_disk.directory, serving, controls),
        defaults=read_generation_defaults(on_disk.directory, serving),
    )


def _template(directory: Path, serving: Serving, controls: tuple[str, ...]) -> ChatTemplate | None:
    if not serving.prompt.chat_template:
        return None
    path = directory / serving.prompt.chat_template
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"the chat template {path} cannot be read: {error}"
        raise Fault(FaultKind.INVALID_MODEL, message, "package the model again") from None
    return ChatTemplate(source, _special_tokens(directory / "tokenizer_config.json"), controls)


def _special_tokens(path: Path) -> dict[str, str]:
    """The variables ``bos_token`` and so on, which templates may use."""
    try:
        config: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error}") from None
    found: dict[str, str] = {}
    for name in _VARIABLES:
        value = config.get(name) if isinstance(config, dict) else None
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found
