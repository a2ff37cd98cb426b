"""Weights that are whole numbers: how a checkpoint says so, and in which format each matrix is kept.

The published layout is compressed-tensors' ``pack-quantized``. For a matrix ``X.weight`` [rows, cols] there
are ``X.weight_packed`` (32-bit words, lowest bits first along a row, half the range added),
``X.weight_scale`` [rows, cols / group] and ``X.weight_shape``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from contract.faults import Fault, FaultKind
from daemon.backends.ms.checkpoint import Checkpoint, StoredTensor
from daemon.backends.ms.kernels import FORMAT_BYTES, FORMATS, WHOLE_FORMATS, Whole
from daemon.engine_options import HeadDtype

PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"
"""Endings of the three tensors that stand for one."""
GROUPS = (32, 64, 128)
"""Columns of a row that may share a scale."""
Use = Literal["linear", "table", "head", "exact"]
"""What a matrix is for: a table of embeddings is looked up, never multiplied unless it is the head too."""
HEAD_DTYPES = get_args(HeadDtype)
"""Choices for a head that is stored in floats."""
_ROUNDED = {name: Whole(name, 64, "bfloat16") for name in WHOLE_FORMATS}
_REMEDY = (
    "quantize the model again with symmetric integers of 4 or 8 bits in groups of 32, 64 or 128, without "
    "activation ordering (compressed-tensors, pack-quantized), or serve the float checkpoint"
)
_FOREIGN = {"_g_idx": "was quantized with activation ordering", "_zero_point": "was quantized asymmetrically"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the quantized tensors of a checkpoint are to be read."""

    bits: int
    group: int

    def words(self, cols: int) -> int:
        """32-bit words of a row."""
        return -(-cols * self.bits // 32)

    def groups(self, cols: int) -> int:
        """Scales of a row."""
        return -(-cols // self.group)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Scheme | None:
        """What config.json says; ``None``: nothing is quantized. Raises ``Fault`` for what is not served."""
        found = config.get("quantization_config")
        if found is None:
            return None
        found = _mapping(found, "quantization_config")
        method, layout = found.get("quant_method"), found.get("format")
        if method != "compressed-tensors" or layout != "pack-quantized":
            raise _unsupported(f"quant_method {method!r} with format {layout!r}")
        groups = list(_mapping(found.get("config_groups"), "config_groups").values())
        schemes = {cls._from_group(_mapping(group, "config_groups")) for group in groups}
        if len(schemes) != 1:
            raise _unsupported(f"{len(schemes)} different config_groups")
        return schemes.pop()

    @classmethod
    def _from_group(cls, group: Mapping[str, Any]) -> Scheme:
        weights = _mapping(group.get("weights"), "config_groups.weights")
        if group.get("input_activations") is not None:
            raise _unsupported("input_activations")
        wanted: Mapping[str, tuple[Any, ...]] = {
            "num_bits": (4, 8),
            "type": ("int",),
            "symmetric": (True,),
            "strategy": ("group",),
            "group_size": GROUPS,
            "dynamic": (False, None),
            "actorder": (None, False),
        }
        for name, allowed in wanted.items():
            if weights.get(name) not in allowed:
                raise _unsupported(f"{name} {weights.get(name)!r}")
        return cls(bits=weights["num_bits"], group=weights["group_size"])


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _unsupported(f"{where} {value!r}")
    return value


def _unsupported(what: str) -> Fault:
    message = f"config.json describes a quantization that the CPU engine does not serve: {what}"
    return Fault(FaultKind.INVALID_MODEL, message, _REMEDY)


def is_packed(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the checkpoint has this matrix as whole numbers."""
    return name + PACKED in checkpoint.tensors


def stored_names(checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
    """The tensors that stand for a matrix or vector."""
    if is_packed(checkpoint, name):
        return name + PACKED, name + SCALE, name + SHAPE
    return (name,)


def check_foreign(checkpoint: Checkpoint) -> None:
    """Raises ``Fault`` for tensors that belong to other schemes."""
    for name, stored in checkpoint.tensors.items():
        for ending, what in _FOREIGN.items():
            if name.endswith(ending):
                message = f"{name} in {stored.path.name}: the matrix {what}, which the CPU engine cannot read"
                raise Fault(FaultKind.INVALID_MODEL, message, _REMEDY)


@dataclass(frozen=True, slots=True)
class Formats:
    """In which format each matrix of a model is kept. What the checkpoint has quantized stays as it is."""

    checkpoint: Checkpoint
    scheme: Scheme | None
    floats: str
    """Of matrices that are not quantized."""
    rounded: str | None = None
    """``int8`` or ``int4``: what the linear layers of a float checkpoint are rounded to."""
    rounds_head: bool = False
    """A head that is stored in floats becomes int8, also of a model of 4 bits: it would lose most of all."""
    shares_table: bool = False
    """The table of embeddings is the head too."""

    @classmethod
    def of_model(
        cls, checkpoint: Checkpoint, config: Mapping[str, Any], dtype: str, head_dtype: str = "auto"
    ) -> Formats:
        """``dtype``: ``auto``, a float format, or ``int8`` or ``int4``. Raises ``Fault``."""
        scheme = Scheme.from_config(config)
        packed = next((name for name in checkpoint.tensors if name.endswith(PACKED)), None)
        if packed is not None and scheme is None:
            message = (
                f"the checkpoint in {checkpoint.folder} has {packed}, and config.json no quantization_config"
            )
            raise Fault(FaultKind.INVALID_MODEL, message, "package the model again")
        floats = dtype if dtype in FORMATS else checkpoint.main_dtype
        rounded = dtype if dtype in WHOLE_FORMATS else None
        if scheme is not None and rounded is not None:
            if dtype != f"int{scheme.bits}":
                message = f"the model has weights of {scheme.bits} bits, which cannot become {dtype}"
                raise Fault(FaultKind.INVALID_CONFIG, message, "leave the option dtype at auto")
            rounded = None
        is_quantized = scheme is not None or rounded is not None
        rounds_head = head_dtype == "int8" or (head_dtype == "auto" and is_quantized)
        return cls(checkpoint, scheme, floats, rounded, rounds_head, bool(config.get("tie_word_embeddings")))

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix is of whole numbers."""
        return self.scheme is not None or self.rounded is not None or self.rounds_head

    def of_cache(self, kv_dtype: str) -> str:
        """Of keys and values, by the option of that name."""
        return self.floats if kv_dtype == "auto" else kv_dtype

    def of(self, names: Sequence[str], use: Use = "linear") -> str | Whole:
        """The format of the matrix made of these tensors. Raises ``Fault`` when they do not go together."""
        packed = [name for name in names if is_packed(self.checkpoint, name)]
        if self.scheme is not None and packed:
            plain = [name for name in names if name in self.checkpoint.tensors]
            if plain:
                message = f"{packed[0]} is quantized and {plain[0]} is not; they are computed together"
                raise Fault(FaultKind.INVALID_MODEL, message, "quantize both, or neither")
            scale = self.checkpoint.tensors.get(packed[0] + SCALE)
            scales = scale.dtype if scale is not None and scale.is_float else "float32"
            return Whole(f"int{self.scheme.bits}", self.scheme.group, scales)
        return self._rounded(use) or self.floats

    def _rounded(self, use: Use) -> Whole | None:
        if use == "head" or (use == "table" and self.shares_table):
            return _ROUNDED["int8"] if self.rounds_head else None
        return _ROUNDED[self.rounded] if self.rounded is not None and use == "linear" else None

    def bytes_of(self, name: str, tensor: StoredTensor, use: Use) -> int:
        """Memory of a stored tensor once it is packed, to a few percent."""
        if not tensor.is_float or name.endswith(SCALE):
            return tensor.bytes
        elements = math.prod(tensor.shape)
        if len(tensor.shape) < 2:
            return 4 * elements
        whole = self._rounded(use)
        if whole is None:
            return FORMAT_BYTES[self.floats] * elements
        scales = tensor.shape[0] * -(-tensor.shape[1] // whole.group) * FORMAT_BYTES[whole.scales]
        return elements * (2 if whole.name == "int8" else 1) // 2 + scales
