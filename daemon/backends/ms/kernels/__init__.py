"""The C++ kernels of the CPU engine, by way of ctypes: packed weights, models, blocks, steps.

Imports neither MindSpore nor anything of ours. Objects of the library are named by integer handles; every
function that can fail raises ``KernelError``. Calls release the interpreter lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

LIBRARY = Path(__file__).with_name("libmindport_kernels.so")

FORMATS: Mapping[str, int] = MappingProxyType({"float32": 0, "bfloat16": 1, "float16": 2})
"""Float formats, as the C++ side numbers them."""
WHOLE_FORMATS: Mapping[str, int] = MappingProxyType({"int8": 3, "int4": 4})
"""Whole numbers that share a scale by groups of columns."""
FORMAT_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
CACHE_FORMATS: Mapping[str, int] = MappingProxyType({**FORMATS, "int8": 3})
"""Formats of cached keys and values; int8 has a float32 scale for each position and head."""
ISA_VARIABLE = "MINDPORT_KERNELS_ISA"
"""Environment variable that forces an instruction set, one of ``ISAS``."""
ISAS = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", "dotprod", "i8mm")
"""Instruction sets there are kernels for; a processor has some of them."""
ACTIVATION_BITS: Mapping[str, int] = MappingProxyType({"auto": 0, "int8": 8, "int7": 7})
"""To which activations are rounded before they meet int8 weights; auto: the quickest here."""
PANEL_ROWS = 16
"""Rows of a packed panel, and positions of a KV block."""

EMBEDDING, ATTENTION, FEED_FORWARD, HEAD, MIXTURE = range(5)
"""Kinds of block."""
IN_MATRIX, OUT_MATRIX = range(2)
"""Matrix slots: table, qkv, gate-up or router; output projection."""
NORM, IN_BIAS, OUT_BIAS, UP_BIAS, SLOPES, QUERY_NORM, KEY_NORM, ROTARY_FACTORS = range(8)
"""Vector slots."""
MATRICES, VECTORS = 2, 8
"""Slots of a block, which each expert of a mixture has again, after the block's own."""
_BLOCK_NUMBERS = 12
_SEGMENT_NUMBERS = 5

FloatArray = npt.NDArray[np.float32]

_OUT_OF_MEMORY = -2
_INT64 = ctypes.c_int64
_POINTER = ctypes.c_void_p
_SIGNATURES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "mp_set_threads": (1, 0),
        "mp_select_activation_bits": (1, 0),
        "mp_reserve": (1, 0),
        "mp_reserve_clear": (0, 0),
        "mp_matrix_new": (6, 0),
        "mp_matrix_free": (1, 0),
        "mp_matrix_bytes": (1, 0),
        "mp_matrix_map": (3, 0),
        "mp_packing_version": (0, 0),
        "mp_model_new": (4, 0),
        "mp_model_free": (1, 0),
        "mp_block_new": (1, 2),
        "mp_block_set_matrix": (3, 0),
        "mp_block_set_vector": (5, 1),
        "mp_step": (2, 3),
        "mp_adapter_new": (0, 0),
        "mp_adapter_set": (5, 3),
        "mp_adapter_free": (1, 0),
        "mp_copy_block": (3, 0),
        "mp_run_block": (1, 2),
    }
)
"""Functions taking so many integers, then so many pointers, and returning an integer."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A format of whole numbers."""

    name: str
    """``int8`` or ``int4``."""
    group: int
    """Columns that share a scale: a multiple of 32."""
    scales: str
    """Float format of the scales."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """``y += U (scales * (D x))`` for one matrix."""

    down: int
    """D [reduced, cols], a matrix of a float format."""
    scales: FloatArray
    """[reduced]"""
    spans: npt.NDArray[np.int64]
    """[panels of the matrix, 2]: first column of U that a panel uses, and how many."""
    up: npt.NDArray[np.generic]
    """U [panels of the matrix, 16, reduced]."""
    up_dtype: str


class KernelError(Exception):
    """The library refused a call; the text says why."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


def pointer(array: npt.NDArray[np.generic]) -> int:
    """The address of a C-contiguous array's data. Raises ``KernelError`` for any other."""
    if not array.flags.c_contiguous:
        raise KernelError("the kernels take C-contiguous arrays only")
    return array.ctypes.data


class Kernels:
    """The loaded library. Loading it again gives the same one: its state belongs to the process."""

    def __init__(self, path: Path = LIBRARY) -> None:
        """Raises ``KernelError`` when the library was not built or does not fit this machine."""
        self.path = path
        if not path.is_file():
            raise KernelError(f"{path} does not exist: the kernels were not built")
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelError(f"{path} cannot be loaded: {error}") from None
        self._declare()
        wanted = os.environ.get(ISA_VARIABLE)
        if wanted and not self.select_isa(wanted):
            raise KernelError(
                f"{ISA_VARIABLE} is {wanted!r}: no such instruction set, or this processor lacks it"
            )

    def _declare(self) -> None:
        library = self._library
        for name, (integers, pointers) in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [_INT64] * integers + [_POINTER] * pointers
            function.restype = _INT64
        library.mp_matrix_pack.argtypes = [_INT64] * 4 + [_POINTER, _INT64]
        library.mp_matrix_pack_scales.argtypes = library.mp_matrix_pack.argtypes
        library.mp_matrix_pack_whole.argtypes = [_INT64] * 4 + [_POINTER]
        library.mp_matrix_pack_scales.restype = library.mp_matrix_pack_whole.restype = _INT64
        library.mp_matmul.argtypes = [_INT64, _POINTER, _INT64, _INT64, _POINTER]
        library.mp_matrix_pack.restype = library.mp_matmul.restype = library.mp_threads.restype = _INT64
        library.mp_select_isa.argtypes = [ctypes.c_char_p]
        library.mp_failure.argtypes = [_INT64]
        for name in ("mp_error", "mp_isa", "mp_failure"):
            getattr(library, name).restype = ctypes.c_char_p
        library.mp_logits.argtypes = [_INT64, ctypes.POINTER(_INT64)]
        library.mp_block_vector.argtypes = [_INT64, _INT64, ctypes.POINTER(_INT64)]
        library.mp_matrix_data.argtypes = library.mp_likeliest.argtypes = [_INT64]
        for name in ("mp_logits", "mp_block_vector", "mp_matrix_data", "mp_likeliest"):
            getattr(library, name).restype = _POINTER
        library.mp_rms_norm.argtypes = [_POINTER, _POINTER, ctypes.c_float, _INT64, _POINTER]
        library.mp_exp.argtypes = library.mp_silu.argtypes = [_POINTER, _INT64, _POINTER]
        library.mp_softmax.argtypes = library.mp_finite.argtypes = [_POINTER, _INT64]
        library.mp_softmax.restype = ctypes.c_float
        library.mp_finite.restype = _INT64

    def _check(self, status: int) -> int:
        if status >= 0:
            return status
        message = self._library.mp_error().decode("utf-8", "replace")
        raise KernelError(message, out_of_memory=status == _OUT_OF_MEMORY)

    # The processor.

    @property
    def isa(self) -> str:
        """The instruction set in use, one of ``ISAS``."""
        name: bytes = self._library.mp_isa()
        return name.decode()

    def select_isa(self, name: str) -> bool:
        """Use this instruction set from now on; false when the processor lacks it. For tests."""
        return bool(self._library.mp_select_isa(name.encode()) == 0)

    @property
    def threads(self) -> int:
        return int(self._library.mp_threads())

    @threads.setter
    def threads(self, count: int) -> None:
        self._check(self._library.mp_set_threads(count))

    def select_activations(self, dtype: str) -> str:
        """Which of ``ACTIVATION_BITS`` products use from now on; the one that was selected."""
        return f"int{self._check(self._library.mp_select_activation_bits(ACTIVATION_BITS[dtype]))}"

    # Matrices.

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Memory for the matrices that are made meanwhile is cleared by a thread of its own."""
        self._check(self._library.mp_reserve(size))
        thread = threading.Thread(target=self._library.mp_reserve_clear, name="reserve")
        thread.start()
        try:
            yield
        finally:
            self._library.mp_reserve(0)
            thread.join()

    def new_matrix(self, rows: int, cols: int, *, parts: int = 1, dtype: str = "float32") -> int:
        """Room for a packed [rows, cols] matrix; ``parts`` of them take turns by panels (gate and up)."""
        return self._check(self._library.mp_matrix_new(rows, cols, parts, FORMATS[dtype], 0, 0))

    def new_whole_matrix(self, rows: int, cols: int, dtype: Whole, *, parts: int = 1) -> int:
        """The same for ``int8`` or ``int4``."""
        numbers = (WHOLE_FORMATS[dtype.name], dtype.group, FORMATS[dtype.scales])
        return self._check(self._library.mp_matrix_new(rows, cols, parts, *numbers))

    def free_matrix(self, matrix: int) -> None:
        self._check(self._library.mp_matrix_free(matrix))

    def matrix_bytes(self, matrix: int) -> int:
        return self._check(self._library.mp_matrix_bytes(matrix))

    def pack(self, matrix: int, rows: tuple[int, int, int], source: int, dtype: str) -> int:
        """Packs ``rows`` = (part, first, count) from row-major floats at address ``source``.

        A matrix of whole numbers gets them rounded to nearest. Returns how many of the elements are infinite
        or NaN. Different rows may be packed in parallel.
        """
        return self._check(self._library.mp_matrix_pack(matrix, *rows, source, FORMATS[dtype]))

    def pack_whole(self, matrix: int, rows: tuple[int, int, int], source: int) -> None:
        """Packs rows of whole numbers: half their range added, lowest bits first in 32-bit words."""
        self._check(self._library.mp_matrix_pack_whole(matrix, *rows, source))

    def pack_scales(self, matrix: int, rows: tuple[int, int, int], source: int, dtype: str) -> int:
        """Packs the scales [rows, groups] of whole numbers. Returns how many are infinite or NaN."""
        return self._check(self._library.mp_matrix_pack_scales(matrix, *rows, source, FORMATS[dtype]))

    @property
    def packing_version(self) -> int:
        """Of the layout of packed matrices: what one process packed fits another of the same version."""
        return int(self._library.mp_packing_version())

    def matrix_data(self, matrix: int) -> memoryview:
        """The packed bytes of a matrix, valid as long as it is."""
        address = self._library.mp_matrix_data(matrix)
        return memoryview((ctypes.c_uint8 * self.matrix_bytes(matrix)).from_address(address)).cast("B")

    def map_matrix(self, matrix: int, descriptor: int, offset: int) -> None:
        """Takes the packed bytes from an open file, at a multiple of the page size, in place of packing.

        The file may be closed and removed afterwards, and must not be changed.
        """
        self._check(self._library.mp_matrix_map(matrix, descriptor, offset))

    def matmul(self, matrix: int, a: FloatArray, panels: int) -> FloatArray:
        """``a`` [m, cols] times the matrix transposed: [m, 16 * panels], padding columns included."""
        out = np.empty((a.shape[0], panels * PANEL_ROWS), np.float32)
        status = self._library.mp_matmul(matrix, pointer(a), a.shape[1], a.shape[0], pointer(out))
        self._check(status)
        return out

    # Models and blocks.

    def new_model(
        self, max_rows: int, max_logit_rows: int, num_blocks: int, *, kv_dtype: str = "float32"
    ) -> int:
        """``kv_dtype``: the format of cached keys and values."""
        limits = (max_rows, max_logit_rows, num_blocks)
        return self._check(self._library.mp_model_new(*limits, CACHE_FORMATS[kv_dtype]))

    def free_model(self, model: int) -> None:
        """Frees the model with its blocks and caches, and the matrices that nothing else names."""
        self._check(self._library.mp_model_free(model))

    def new_block(self, model: int, shape: Sequence[int], eps: float, scale: float) -> int:
        """``shape``: kind, hidden, inner, heads, kv heads, head_dim, rotary_dim, window, experts, active
        experts, whether their shares sum to one, whether the rows of a head count as divided by their
        lengths; 0 where without meaning or left out."""
        numbers = np.zeros(_BLOCK_NUMBERS, np.int64)
        numbers[: len(shape)] = shape
        reals = np.array([eps, scale], np.float64)
        return self._check(self._library.mp_block_new(model, pointer(numbers), pointer(reals)))

    def set_matrix(self, block: int, slot: int, matrix: int) -> None:
        self._check(self._library.mp_block_set_matrix(block, slot, matrix))

    def set_vector(self, block: int, slot: int, values: FloatArray, *, size: int, first: int = 0) -> None:
        """Sets elements [first, first + len(values)) of a vector of ``size`` elements."""
        function = self._library.mp_block_set_vector
        self._check(function(block, slot, size, first, values.size, pointer(values)))

    def vector(self, block: int, slot: int) -> FloatArray:
        """A copy of a block's vector; empty when it was not set."""
        size = _INT64(0)
        address = self._library.mp_block_vector(block, slot, ctypes.byref(size))
        if not address:
            return np.empty(0, np.float32)
        values: FloatArray = np.ctypeslib.as_array((ctypes.c_float * size.value).from_address(address))
        return values.copy()

    # Adapters.

    def new_adapter(self) -> int:
        """An adapter that changes nothing yet."""
        return self._check(self._library.mp_adapter_new())

    def set_low_rank(self, adapter: int, matrix: int, change: LowRank) -> int:
        """What an adapter adds to the products of a matrix. Returns the bytes it takes."""
        elements, format_ = change.up.size, FORMATS[change.up_dtype]
        arrays = (pointer(change.scales), pointer(change.spans), pointer(change.up))
        return self._check(
            self._library.mp_adapter_set(adapter, matrix, change.down, elements, format_, *arrays)
        )

    def free_adapter(self, adapter: int) -> None:
        """No step may name it any more."""
        self._check(self._library.mp_adapter_free(adapter))

    # Steps.

    def begin_step(
        self,
        model: int,
        shape: npt.NDArray[np.int64],
        rope: npt.NDArray[np.float64],
        tables: npt.NDArray[np.int32],
        adapters: Sequence[int] | None = None,
    ) -> int:
        """Describes the next step; returns its serial number, which the operators are given.

        ``shape`` [segments, 4]: rows, first position, length of the block table, first row that wants logits;
        ``rope`` [segments, 2]: base, scale; ``tables``: the block tables one after the other; ``adapters``:
        one a segment, 0 for none.
        """
        numbers = np.zeros((len(shape), _SEGMENT_NUMBERS), np.int64)
        numbers[:, :4] = shape
        if adapters is not None:
            numbers[:, 4] = adapters
        function = self._library.mp_step
        return self._check(function(model, len(shape), pointer(numbers), pointer(rope), pointer(tables)))

    def failure(self, model: int) -> str:
        """Why an operator of the last step failed; empty when none did."""
        text: bytes = self._library.mp_failure(model)
        return text.decode("utf-8", "replace")

    def logits(self, model: int, rows: int, vocab: int) -> FloatArray:
        """The last step's logits [rows, vocab]: a view of the library's memory, valid until the next step."""
        stride = _INT64(0)
        address = self._library.mp_logits(model, ctypes.byref(stride))
        if rows == 0 or not address:
            return np.empty((0, vocab), np.float32)
        memory = (ctypes.c_float * (rows * stride.value)).from_address(address)
        flat: FloatArray = np.ctypeslib.as_array(memory)
        return flat.reshape(rows, stride.value)[:, :vocab]

    def likeliest(self, model: int, rows: int) -> npt.NDArray[np.int64]:
        """Tokens with the largest logits of the last step's rows, the first of equals."""
        address = self._library.mp_likeliest(model)
        memory = (_INT64 * (rows if address else 0)).from_address(address or 0)
        return np.ctypeslib.as_array(memory).astype(np.int64)

    def copy_block(self, model: int, src: int, dst: int) -> None:
        self._check(self._library.mp_copy_block(model, src, dst))

    # Single kernels, for tests.

    def run_block(self, block: int, x: npt.NDArray[np.generic], out: FloatArray) -> None:
        self._check(self._library.mp_run_block(block, pointer(x), pointer(out)))

    def rms_norm(self, x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
        out = np.empty_like(x)
        self._library.mp_rms_norm(pointer(x), pointer(weight), eps, x.size, pointer(out))
        return out

    def exp(self, x: FloatArray) -> FloatArray:
        out = np.empty_like(x)
        self._library.mp_exp(pointer(x), x.size, pointer(out))
        return out

    def silu(self, x: FloatArray) -> FloatArray:
        out = np.empty_like(x)
        self._library.mp_silu(pointer(x), x.size, pointer(out))
        return out

    def softmax(self, x: FloatArray) -> FloatArray:
        padded = np.zeros(-(-x.size // PANEL_ROWS) * PANEL_ROWS, np.float32)
        padded[: x.size] = x
        total = self._library.mp_softmax(pointer(padded), x.size)
        return (padded[: x.size] / np.float32(total)).astype(np.float32)

    def finite(self, x: FloatArray) -> bool:
        return bool(self._library.mp_finite(pointer(x), x.size))
