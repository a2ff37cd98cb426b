"""Reads a checkpoint of another form as if it were HuggingFace's safetensors, for ``builder package``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from builder.checkpoints.layouts.families import HF, LAYOUTS
from builder.checkpoints.readers.source import find_source, has_foreign_weights
from builder.checkpoints.safetensors_header import write_header
from builder.checkpoints.weight_files import WeightFile, Weights, find_weights
from builder.checkpoints.writers.safetensors_file import file_order, header_of
from builder.conversion.files import TargetFile, target_files
from builder.conversion.order import ConvertOrder
from builder.conversion.plan import plan_conversion
from builder.conversion.subject import Subject
from builder.families.base import Family


def read_weights(path: Path, family: Family, values: Mapping[str, Any] | None) -> Weights:
    """The weights of any known form under HuggingFace's names. Raises ``Fault``.

    Without ``values``, the sound config that another form cannot be read without, only HuggingFace's own is.
    """
    if family.name not in LAYOUTS or values is None:
        return find_weights(path)
    if not has_foreign_weights(path):
        weights = find_weights(path)
        if weights.problems or not _has_other_names(weights, family):
            return weights
    source = find_source(path)
    order = ConvertOrder(path, Path("model"), to=HF)
    conversion = plan_conversion(source, Subject(family, values, complete=True), order)
    files = target_files(conversion, order).weights
    return Weights(tuple(_assembled(path, file) for file in files), (), conversion.found)


def _has_other_names(weights: Weights, family: Family) -> bool:
    layouts = LAYOUTS[family.name]
    return bool(layouts.hf.unknown(weights.tensors)) and any(
        not layout.unknown(weights.tensors) for layout in layouts.all()
    )


def _assembled(path: Path, file: TargetFile) -> WeightFile:
    tensors = tuple(file_order(file.tensors))
    header = header_of(tensors, dict(file.metadata))
    raw = write_header(list(header.tensors), header.metadata)[8:]
    return WeightFile(path, file.name, replace(header, sha256=hashlib.sha256(raw).hexdigest()), tensors)
