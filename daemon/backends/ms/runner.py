"""Loads a model directory and computes steps of it on the CPU.

MindSpore is imported by ``ModelRunner.load``, in the process that serves the model, and nowhere else. The
network is compiled once, for ``max_rows`` rows: its operators compute only the rows a step has.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.faults import Fault, FaultKind
from contract.serving import read_config
from daemon.backends.ms.adapters import AdapterLoader
from daemon.backends.ms.checkpoint import Checkpoint
from daemon.backends.ms.graph_cache import code_digest
from daemon.backends.ms.kernels import (
    ACTIVATION_BITS,
    CACHE_FORMATS,
    FORMATS,
    PANEL_ROWS,
    WHOLE_FORMATS,
    KernelError,
    Kernels,
)
from daemon.backends.ms.network_file import build, first_line
from daemon.backends.ms.packed_cache import PackedCache, PackedWeights
from daemon.backends.ms.quantization import HEAD_DTYPES, Formats, Use
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.shape import DecoderShape
from daemon.backends.ms.weights import WeightLoader, estimate
from daemon.engine_options import DEFAULTS

FloatArray = npt.NDArray[np.float32]
Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and what is being done, from several threads, one at a time."""

_READ_SHARE = 0.9  # of the progress that reading weights is


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a model is to be run."""

    num_blocks: int
    """KV blocks to provide."""
    max_rows: int = DEFAULTS.max_rows
    """Most tokens of a step, over all its segments."""
    max_logit_rows: int = DEFAULTS.max_logit_rows
    """Most rows of a step that want logits."""
    threads: int = 0
    """Threads of the kernels; 0: as many as the process may use processors."""
    dtype: str = DEFAULTS.dtype
    """Of the packed weights: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``; ``int8`` or
    ``int4`` round the linear layers of a float checkpoint. What is stored quantized stays so."""
    head_dtype: str = DEFAULTS.head_dtype
    """Of a head stored in floats: ``stored`` as they are, ``int8``, or ``auto``: int8 in quantized models."""
    kv_dtype: str = DEFAULTS.kv_dtype
    """Of cached keys and values: ``auto`` (the float type of the weights), ``float32``, ``bfloat16`` or
    ``float16`` in half the memory, or ``int8`` in little more than a quarter."""
    activation_dtype: str = DEFAULTS.activation_dtype
    """Of activations that meet int8 weights: ``int8``, ``int7`` or ``auto``, the quicker one here."""
    allow_nonfinite: bool = DEFAULTS.allow_nonfinite
    """Weights may be infinite or NaN."""
    block_size: int = PANEL_ROWS
    packed_cache: Path | None = None
    """A folder in which packed weights are kept and found again."""


class ModelRunner:
    """One loaded model, for one thread: MindSpore stops for good when two run graphs at the same time."""

    def __init__(self, shape: DecoderShape, options: RunnerOptions, kernels: Kernels, device: Any) -> None:
        """For ``load``, which is how a runner is made."""
        self.vocab_size = shape.vocab
        self.context_len = shape.context
        self.block_size = options.block_size
        self.num_blocks = options.num_blocks
        self.max_rows = options.max_rows
        self.max_logit_rows = options.max_logit_rows
        self.kv_dtype = options.kv_dtype
        self.activation_dtype = options.activation_dtype
        self.kv_bytes_per_block = shape.kv_bytes_per_block(self.kv_dtype)
        self.weight_bytes: int = device.weight_bytes
        self.mapped_bytes = 0
        """Of the weights, those in a mapped file: the system may take their pages back."""
        self._kernels = kernels
        self._device = device
        self._adapters = AdapterLoader(kernels, device.plan, device.adaptable)
        self._model: int = device.model
        self._closed = False
        self._network: Any = None
        self._tokens = np.zeros(options.max_rows, np.int32)
        self._serial = np.zeros(1, np.int64)
        self.likeliest: npt.NDArray[np.int64] | None = None
        """The token with the largest logit of each row of the last step."""

    @classmethod
    def load(cls, model_dir: Path, *, options: RunnerOptions, progress: Progress) -> ModelRunner:
        """Reads, packs and compiles a model. Raises ``Fault`` when it cannot be run."""
        config = read_config(model_dir)
        shape = DecoderShape.from_config(config)
        _check_options(options)
        checkpoint = Checkpoint(model_dir)
        progress(0.0, "starting MindSpore")
        packed_bytes = 0  # of weights to pack: those of a cache are mapped
        if options.packed_cache is None:
            packed_bytes = estimate(model_dir, options.dtype, head_dtype=options.head_dtype).weight_bytes
        try:
            kernels = Kernels()
            kernels.threads = options.threads or len(os.sched_getaffinity(0))
            with kernels.reserve(packed_bytes):
                _set_up_mindspore()
                return cls._build(model_dir, config, (shape, options), (kernels, checkpoint), progress)
        except KernelError as error:
            raise _fault_of(error) from None

    @classmethod
    def _build(
        cls,
        model_dir: Path,
        config: dict[str, Any],
        wanted: tuple[DecoderShape, RunnerOptions],
        sources: tuple[Kernels, Checkpoint],
        progress: Progress,
    ) -> ModelRunner:
        from daemon.backends.ms.layers import Device

        (shape, options), (kernels, checkpoint) = wanted, sources
        formats = Formats.of_model(checkpoint, config, options.dtype, options.head_dtype)
        chosen = kernels.select_activations(options.activation_dtype)
        options = replace(
            options,
            kv_dtype=formats.of_cache(options.kv_dtype),
            activation_dtype=chosen if formats.is_quantized else "float32",
        )
        limits = (options.max_rows, options.max_logit_rows, options.num_blocks)
        model = kernels.new_model(*limits, kv_dtype=options.kv_dtype)
        device = Device(kernels, model, options.max_rows, formats)
        try:
            network = build(model_dir, config, device)
            runner = cls(shape, options, kernels, device)
            runner._network = network
            loader = WeightLoader(kernels, checkpoint, device.plan, formats.scheme)
            packed = PackedWeights(kernels, tuple(device.matrices), device.plan)
            cache = _cache(model_dir, packed, formats, options)
            runner._load_weights(loader, cache, options, progress)
        except BaseException:
            device.release()
            kernels.free_model(model)
            raise
        progress(1.0, "ready")
        return runner

    def _load_weights(
        self, loader: WeightLoader, cache: PackedCache | None, options: RunnerOptions, progress: Progress
    ) -> None:
        """From the cache, or packed while the graph is compiled, which names weights by handle only."""
        cached = cache is not None and cache.load()
        if cached:
            self.mapped_bytes = self.weight_bytes
            self._compile(cache)
        else:

            def report(done: int, total: int) -> None:
                progress(_READ_SHARE * done / max(1, total), "reading weights")

            with ThreadPoolExecutor(1, "load") as pool:
                reading = pool.submit(loader.load, self._kernels.threads, report)
                self._compile(cache)
                reading.result()
            loader.check_finite(allow=options.allow_nonfinite)
        progress(_READ_SHARE, "first step")
        self._warm_up(allow_nonfinite=options.allow_nonfinite)
        if cache is not None and not cached and loader.all_finite:
            progress(_READ_SHARE, "keeping packed weights")
            cache.save()

    def rope_for(self, prompt_len: int) -> tuple[float, float]:
        """Rotary base and scale of a sequence with a prompt of this length, for its whole life."""
        base, scale = self._network.rope_for(prompt_len)
        return float(base), float(scale)

    def execute(self, segments: Sequence[Segment]) -> FloatArray:
        """Computes a step: float32 [rows that want logits, vocab], in segment order, until the next call.

        A row whose logits are not finite throughout begins with NaN. Raises ``Fault`` when a limit is broken
        or memory runs out.
        """
        if self._closed:
            raise Fault(FaultKind.NOT_READY, "the model has been closed")
        rows, wanted = self._write_tokens(segments)
        try:
            self._run(self._begin(segments))
        except KernelError as error:
            raise _fault_of(error) from None
        failure = self._kernels.failure(self._model)
        if failure:
            kind = FaultKind.OUT_OF_MEMORY if failure == "out of memory" else FaultKind.INTERNAL
            raise Fault(kind, f"the step failed: {failure}", details={"rows": rows})
        self.likeliest = self._kernels.likeliest(self._model, wanted)
        return self._kernels.logits(self._model, wanted, self.vocab_size)

    def load_adapter(self, folder: Path) -> tuple[int, int]:
        """Packs a LoRA adapter: the number that segments name it by, and the bytes it takes.

        May run beside ``execute``. Raises ``Fault`` when it is damaged or not for this model.
        """
        try:
            return self._adapters.load(folder)
        except KernelError as error:
            raise _fault_of(error) from None

    def free_adapter(self, adapter: int) -> None:
        """No later step may name it."""
        self._kernels.free_adapter(adapter)

    def copy_block(self, src: int, dst: int) -> None:
        """Copies a KV block of every layer. Raises ``Fault`` when there is no such block."""
        try:
            self._kernels.copy_block(self._model, src, dst)
        except KernelError as error:
            raise _fault_of(error) from None

    def close(self) -> None:
        """Gives the memory back. Views of logits must not be used afterwards."""
        if not self._closed:
            self._closed = True
            self._network = None
            self._device.release()
            self._kernels.free_model(self._model)

    def _write_tokens(self, segments: Sequence[Segment]) -> tuple[int, int]:
        """Fills the tokens of the step; the number of rows, and of those that want logits."""
        row = wanted = 0
        for segment in segments:
            end = row + len(segment.token_ids)
            if end > self.max_rows:
                message = f"a step may have {self.max_rows} rows, and this one has at least {end}"
                raise Fault(FaultKind.INTERNAL, message)
            self._tokens[row:end] = segment.token_ids
            wanted += len(segment.token_ids) - segment.logits_from
            row = end
        return row, wanted

    def _begin(self, segments: Sequence[Segment]) -> int:
        shape = np.array(
            [(len(s.token_ids), s.start, len(s.block_table), s.logits_from) for s in segments], np.int64
        ).reshape(-1, 4)
        rope = np.array([(s.rope_base, s.rope_scale) for s in segments], np.float64).reshape(-1, 2)
        tables = np.fromiter((block for s in segments for block in s.block_table), np.int32)
        adapters = [segment.adapter for segment in segments]
        return self._kernels.begin_step(self._model, shape, rope, tables, adapters)

    @functools.cached_property
    def _inputs(self) -> tuple[Any, Any]:
        """Tensors that share the memory of the arrays. Operators refuse a step of another serial number."""
        import mindspore

        return mindspore.Tensor.from_numpy(self._tokens), mindspore.Tensor.from_numpy(self._serial)

    def _run(self, serial: int) -> None:
        try:
            self._serial[0] = serial
            self._network(*self._inputs).asnumpy()
        except RuntimeError as error:
            message = f"MindSpore could not run the graph: {first_line(error)}"
            raise Fault(FaultKind.INTERNAL, message) from error

    def _compile(self, cache: PackedCache | None) -> None:
        kept = contextlib.nullcontext() if cache is None else cache.graph(self._compiled_for()).used()
        try:
            with kept:
                self._network.phase = "increment"  # with this name, calls do not ask whether to compile again
                self._network.compile(*self._inputs)
        except Exception as error:
            message = f"the network cannot be compiled: {first_line(error)}"
            raise Fault(FaultKind.INVALID_MODEL, message) from error

    def _compiled_for(self) -> list[Any]:
        """What determines the graph, besides files and packing."""
        import mindspore

        return [mindspore.__version__, self.max_rows, str(self._kernels.path), code_digest()]

    def _warm_up(self, *, allow_nonfinite: bool) -> None:
        """One step of one token, so that the first request does not pay for first times."""
        base, scale = self.rope_for(1)
        logits = self.execute([Segment([0], 0, [0], 0, base, scale)])
        if not (allow_nonfinite or np.isfinite(logits).all()):
            message = "the weights give logits that are NaN or infinite"
            hint = "the checkpoint is damaged, or its values exceed the range of float32 when computed"
            raise Fault(FaultKind.INVALID_MODEL, message, hint)


def _check_options(options: RunnerOptions) -> None:
    if options.block_size != PANEL_ROWS:
        message = f"the CPU engine has KV blocks of {PANEL_ROWS} positions, not {options.block_size}"
        raise Fault(FaultKind.INVALID_CONFIG, message)
    for name, value, known in (
        ("dtype", options.dtype, ("auto", *FORMATS, *WHOLE_FORMATS)),
        ("head_dtype", options.head_dtype, HEAD_DTYPES),
        ("kv_dtype", options.kv_dtype, ("auto", *CACHE_FORMATS)),
        ("activation_dtype", options.activation_dtype, tuple(ACTIVATION_BITS)),
    ):
        if value not in known:
            message = f"{name} {value!r} is not one of {', '.join(known)}"
            raise Fault(FaultKind.INVALID_CONFIG, message)
    if min(options.num_blocks, options.max_rows, options.max_logit_rows) < 1 or options.threads < 0:
        message = "num_blocks, max_rows and max_logit_rows must be positive, threads not negative"
        raise Fault(FaultKind.INVALID_CONFIG, message)


@functools.cache  # MindSpore accepts these settings once a process
def _set_up_mindspore() -> None:
    os.environ.setdefault("GLOG_v", "3")  # errors only; read when MindSpore is first imported
    gc.disable()  # MindSpore makes half a million objects that live as long as the process
    try:
        import mindspore
    except ImportError as error:
        message = f"MindSpore cannot be imported: {first_line(error)}"
        hint = "pip install 'mindport[ms]' gets it for x86-64; Arm needs the wheel from www.mindspore.cn"
        raise Fault(FaultKind.INVALID_CONFIG, message, hint) from error
    finally:
        gc.freeze()
        gc.enable()

    mindspore.set_device("CPU")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    # One thread hands out operators: more would contend with the kernels' own.
    mindspore.runtime.dispatch_threads_num(1)


def _cache(
    model_dir: Path, packed: PackedWeights, formats: Formats, options: RunnerOptions
) -> PackedCache | None:
    from daemon.backends.ms.layers import LAYER_API_VERSION

    if options.packed_cache is None:
        return None
    uses: tuple[Use, ...] = ("linear", "table", "head")
    how = {
        "dtype": options.dtype,
        "formats": [str(formats.of([], use)) for use in uses],
        "layer_api": LAYER_API_VERSION,
    }
    return PackedCache.of_model(options.packed_cache, model_dir, packed, how)


def _fault_of(error: KernelError) -> Fault:
    if error.out_of_memory:
        hint = "lower the number of KV blocks, or use a smaller dtype"
        return Fault(FaultKind.OUT_OF_MEMORY, "the kernels ran out of memory", hint)
    if "kernels were not built" in str(error):
        hint = "install a C++17 compiler and install MindPort again"
        return Fault(FaultKind.START_FAILED, str(error), hint)
    return Fault(FaultKind.INTERNAL, str(error))
