"""A checkpoint of GPTQ or AWQ read as if it were in compressed-tensors' ``pack-quantized`` form, exactly.

Symmetric integers of 4 bits stay 4 bits. A zero point elsewhere than in the middle makes integers from -15 to
15, which 8 bits hold: the weights then stand for the same numbers and take twice the room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from builder.checkpoints.packed_words import GroupScales, PackedLayer, PackedWeight, Shape
from builder.checkpoints.safetensors_header import TensorEntry, write_header
from builder.checkpoints.views import SourceFile, Span, Stored, View
from builder.checkpoints.weight_files import WeightFile, Weights
from builder.checkpoints.writers.safetensors_file import file_order, header_of
from builder.checkpoints.writers.streams import NamedView
from builder.families.base import Family
from builder.quantization import GROUP_SIZES, PACKED, SCALE, SHAPE, Quantization
from builder.ready_made import WHOLE_ROW, ReadyMade
from contract.faults import Problem

QWEIGHT = ".qweight"
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_FETCH_AGAIN = "fetch the checkpoint again"
_UNQUANTIZED = "take the publisher's unquantized weights, and quantize them with: --quantize int4"
_SHOWN = 8
_FLOATS = ("F16", "BF16", "F32")


def is_ready_made(weights: Weights) -> bool:
    """Whether some matrix is stored as GPTQ and AWQ store it."""
    return any(name.endswith(QWEIGHT) for name in weights.tensors)


def read_packed(
    weights: Weights, form: ReadyMade, family: Family, values: Mapping[str, Any]
) -> tuple[Weights, Quantization | None]:
    """The same weights in our form, and what it is; with problems, the weights only."""
    table = _Table.of(weights)
    modules = sorted(name.removesuffix(QWEIGHT) for name in weights.tensors if name.endswith(QWEIGHT))
    problems = [problem for name in modules for problem in table.problems(name, form)]
    if problems or not modules:
        problems = problems or [Problem("weights", f"holds no {QWEIGHT}", _FETCH_AGAIN)]
        return replace(weights, problems=tuple(problems[:_SHOWN])), None
    layers = {name: table.layer(name, form) for name in modules}
    group = _common_group(form, {layer.inputs for layer in layers.values()})
    symmetric = all(layer.is_symmetric for layer in layers.values())
    if group is None or (form.bits == 8 and not symmetric):
        what = "no group of 32, 64 or 128 divides" if group is None else "zero points of 8 bits shift"
        problem = Problem("weights", f"{what} all of {form}", _UNQUANTIZED)
        return replace(weights, problems=(problem,)), None
    linear = dict(family.linear_modules(values))
    kept = {name for name in linear if name not in layers} | ({family.head} - layers.keys())
    quantization = Quantization(form.bits if symmetric else 8, group, tuple(sorted(kept)))
    expected = {name for name, _ in family.expected_tensors(values)}
    files = tuple(file for file in table.files(layers, quantization, expected) if file.assembly)
    note = f"{form}, value for value"
    if not symmetric:
        note += "; their zero points take int8"
    return Weights(files, (), note), quantization


def _common_group(form: ReadyMade, widths: set[int]) -> int | None:
    """The largest group that lies within the publisher's and divides every row."""
    return next(
        (
            size
            for size in sorted(GROUP_SIZES, reverse=True)
            if (form.group == WHOLE_ROW or form.group % size == 0)
            and all(width % size == 0 for width in widths)
        ),
        None,
    )


@dataclass(frozen=True)
class _Table:
    """Every tensor of a checkpoint: where it lies, and in which of its files."""

    weights: Weights
    views: Mapping[str, Stored]
    entries: Mapping[str, TensorEntry]

    @classmethod
    def of(cls, weights: Weights) -> _Table:
        views = {}
        for file in weights.files:
            source = SourceFile(file.path)
            for tensor in file.header.tensors:
                span = Span(file.header.data_start + tensor.start, tensor.end - tensor.start)
                views[tensor.name] = Stored(source, tensor.dtype, tensor.shape, (span,))
        return cls(weights, views, weights.tensors)

    def layer(self, name: str, form: ReadyMade) -> PackedLayer:
        return PackedLayer(name, form, *(self.views[f"{name}.{part}"] for part in _PARTS[:3]))

    def problems(self, name: str, form: ReadyMade) -> Iterator[Problem]:
        """What is wrong with the tensors of a layer: the first thing only."""
        missing = [part for part in _PARTS[:3] if f"{name}.{part}" not in self.views]
        if missing:
            yield Problem(f"weights  {name}", f"has no {' and no '.join(missing)}", _FETCH_AGAIN)
            return
        for part, codes in (("qweight", ("I32",)), ("qzeros", ("I32",)), ("scales", _FLOATS)):
            found = self.views[f"{name}.{part}"]
            if found.dtype not in codes or len(found.shape) != 2 or not found.elements:
                shown = f"{found.dtype} of shape {list(found.shape)}"
                message = f"is {shown}, not a matrix of {' or '.join(codes)}"
                yield Problem(f"weights  {name}.{part}", message, _FETCH_AGAIN)
                return
        layer = self.layer(name, form)
        yield from _wrong_shapes(layer) or self._wrong_order(layer)

    def _wrong_order(self, layer: PackedLayer) -> list[Problem]:
        """Activation ordering: groups whose inputs do not lie side by side."""
        import numpy as np

        where = f"{layer.name}.g_idx"
        found = self.views.get(where)
        if found is None:
            message = "has no g_idx, which desc_act needs"
            return [Problem(f"weights  {layer.name}", message, _FETCH_AGAIN)] if layer.form.ordered else []
        if found.dtype not in ("I32", "I64") or found.shape != (layer.inputs,):
            shown = f"{found.dtype} of shape {list(found.shape)}"
            message = f"is {shown}, not the group of each of {layer.inputs} inputs"
            return [Problem(f"weights  {where}", message, _FETCH_AGAIN)]
        groups = found.read(0, layer.inputs)[:, 0]
        if np.array_equal(groups, np.arange(layer.inputs) // layer.group):
            return []
        message = "puts inputs that do not lie side by side into one group (desc_act)"
        return [Problem(f"weights  {where}", message, _UNQUANTIZED)]

    def files(
        self, layers: Mapping[str, PackedLayer], quantization: Quantization, expected: set[str]
    ) -> Iterator[WeightFile]:
        """The checkpoint's files as they would be in our form."""
        for file in self.weights.files:
            tensors: list[NamedView] = []
            for tensor in file.header.tensors:
                module, _, part = tensor.name.rpartition(".")
                layer = layers.get(module)
                if layer is None or part not in (*_PARTS, "bias"):
                    tensors.append(NamedView(tensor.name, self.views[tensor.name]))
                elif part == "qweight":
                    tensors.extend(_outputs(layer, quantization))
                elif part == "bias" and (tensor.name in expected or not self._is_zero(tensor.name)):
                    tensors.append(NamedView(tensor.name, self.views[tensor.name]))
            yield _assembled(file, tensors)

    def _is_zero(self, name: str) -> bool:
        """Older writers give every layer a bias."""
        return not any(chunk.any() for chunk in self.views[name].chunks())


def _wrong_shapes(layer: PackedLayer) -> list[Problem]:
    groups = -(-layer.inputs // layer.group)
    outputs, per_word = layer.outputs, layer.per_word
    wanted = {
        "qweight": (layer.qweight.shape[0], outputs // (1 if layer.form.method == "gptq" else per_word)),
        "qzeros": (groups, outputs // per_word),
        "scales": (groups, outputs),
    }
    found = {"qweight": layer.qweight.shape, "qzeros": layer.qzeros.shape, "scales": layer.scales.shape}
    if outputs % per_word:
        message = f"has {outputs} outputs, which are not whole words of {per_word}"
        return [Problem(f"weights  {layer.name}.scales", message, _FETCH_AGAIN)]
    return [
        Problem(
            f"weights  {layer.name}.{part}",
            f"has shape {list(found[part])}; {layer.form} with {layer.inputs} inputs and {outputs} outputs "
            f"take {list(shape)}",
            "correct quantization_config, or fetch the checkpoint again",
        )
        for part, shape in wanted.items()
        if found[part] != shape
    ][:1]


def _outputs(layer: PackedLayer, quantization: Quantization) -> Iterator[NamedView]:
    parts: dict[str, View] = {
        PACKED: PackedWeight(layer, quantization.bits),
        SCALE: GroupScales(layer, quantization.group),
        SHAPE: Shape((layer.outputs, layer.inputs)),
    }
    for part, view in parts.items():
        yield NamedView(f"{layer.name}.{part}", view)


def _assembled(file: WeightFile, tensors: list[NamedView]) -> WeightFile:
    ordered = tuple(file_order(tensors))
    metadata = dict(file.header.metadata)
    header = header_of(ordered, metadata)
    # The publisher's header too: the same places may be made of other forms.
    raw = write_header(list(header.tensors), metadata) + file.header.sha256.encode()
    return WeightFile(file.path, file.name, replace(header, sha256=hashlib.sha256(raw).hexdigest()), ordered)
