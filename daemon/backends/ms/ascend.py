"""Computes steps with mindformers on an Ascend NPU instead of the CPU's kernels. Never run there.

No NPU was at hand: the calls are checked against mindformers 1.9.0's signatures, and what is passed against a
stand-in. The form is that of mindformers' own inference networks (``use_legacy: false``): the tokens of all
sequences one after the other, ``valid_length_each_example`` with how long each sequence is afterwards,
``q_seq_lens`` with how many of its tokens are new, and the slot of the cache for each new token.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.faults import Fault, FaultKind
from contract.serving import read_config
from daemon.backends.ms.runner import RunnerOptions
from daemon.backends.ms.segments import Segment
from daemon.backends.ms.shape import DecoderShape

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
Progress = Callable[[float, str], None]

_BLOCK_SIZE = 16
_GIB = 2**30


class AscendRunner:
    """One model on one NPU, for one thread."""

    kv_dtype = activation_dtype = "float16"

    def __init__(self, shape: DecoderShape, model: Any, max_rows: int) -> None:
        """``model``: what mindformers' ``ModelRunner`` returns."""
        self.vocab_size = shape.vocab
        self.context_len = shape.context
        self.block_size = _BLOCK_SIZE
        self.num_blocks: int = model.npu_num_blocks
        self.max_rows = max_rows
        self.max_logit_rows = max_rows
        self.kv_bytes_per_block = shape.kv_bytes_per_block(self.kv_dtype)
        self.weight_bytes = self.mapped_bytes = 0
        self._model = model

    @classmethod
    def load(cls, model_dir: Path, *, options: RunnerOptions, progress: Progress) -> AscendRunner:
        """Loads a version's folder with mindformers. Raises ``Fault``."""
        shape = DecoderShape.from_config(read_config(model_dir))
        need = options.num_blocks * shape.kv_bytes_per_block(cls.kv_dtype)
        progress(0.0, "starting mindformers")
        try:
            from mindformers import ModelRunner
        except ImportError as error:
            hint = "install mindformers 1.9.0 and CANN, or leave out --ms-device"
            raise Fault(FaultKind.START_FAILED, f"mindformers cannot be imported: {error}", hint) from None
        os.chdir(model_dir)  # the yaml's paths are relative
        try:
            model = ModelRunner(
                model_path=str(model_dir),
                npu_mem_size=max(1, math.ceil(need / _GIB)),
                cpu_mem_size=0,
                block_size=_BLOCK_SIZE,
                rank_id=0,
                world_size=1,
                npu_device_ids=[0],
            )
        except Exception as error:
            message = f"mindformers cannot load {model_dir}: {type(error).__name__}: {error}"
            raise Fault(FaultKind.START_FAILED, message, "see the daemon's log") from error
        progress(1.0, "ready")
        return cls(shape, model, options.max_rows)

    def rope_for(self, prompt_len: int) -> tuple[float, float]:
        """mindformers' networks turn by themselves."""
        return 1.0, 1.0

    likeliest: npt.NDArray[np.int64] | None = None

    def execute(self, segments: Sequence[Segment]) -> FloatArray:
        """Logits [sequences that want them, vocab]. Raises ``Fault``."""
        for segment in segments:
            if len(segment.token_ids) - segment.logits_from > 1 or segment.adapter:
                message = "log-probabilities of prompts, guessed tokens and adapters are not there on Ascend"
                raise Fault(FaultKind.UNSUPPORTED, message, "leave them out of the request")
        # A sequence that begins is computed apart: its attention needs no cache.
        beginning = [i for i, segment in enumerate(segments) if segment.start == 0]
        going_on = [i for i, segment in enumerate(segments) if segment.start > 0]
        logits = np.empty((len(segments), self.vocab_size), np.float32)
        for chosen, prefill in ((beginning, True), (going_on, False)):
            if chosen:
                logits[chosen] = self._forward([segments[i] for i in chosen], prefill=prefill)
        wanted = [i for i, segment in enumerate(segments) if segment.logits_from < len(segment.token_ids)]
        return logits[wanted]

    def _forward(self, segments: Sequence[Segment], *, prefill: bool) -> FloatArray:
        counts = [len(segment.token_ids) for segment in segments]
        positions = [
            np.arange(s.start, s.start + n, dtype=np.int32) for s, n in zip(segments, counts, strict=True)
        ]
        output = self._model.forward(
            input_ids=np.concatenate([np.asarray(segment.token_ids, np.int32) for segment in segments]),
            valid_length_each_example=[s.start + n for s, n in zip(segments, counts, strict=True)],
            block_tables=self._tables(segments),
            slot_mapping=np.concatenate([_slots(s, p) for s, p in zip(segments, positions, strict=True)]),
            prefill=prefill,
            position_ids=np.concatenate(positions),
            q_seq_lens=np.array(counts, np.int32),
        )
        logits = np.asarray(output.asnumpy(), np.float32).reshape(len(segments), -1)
        return logits[:, : self.vocab_size]

    def _tables(self, segments: Sequence[Segment]) -> IntArray:
        """Block tables as rows of one length, filled with -1."""
        tables = np.full((len(segments), max(len(s.block_table) for s in segments)), -1, np.int32)
        for row, segment in enumerate(segments):
            tables[row, : len(segment.block_table)] = segment.block_table
        return tables

    def load_adapter(self, folder: Path) -> tuple[int, int]:
        """Raises ``Fault``, always."""
        message = f"the adapter in {folder} cannot be served on Ascend"
        raise Fault(FaultKind.UNSUPPORTED, message, "merge it when packaging: builder package --adapter")

    def free_adapter(self, adapter: int) -> None:
        """There are none."""

    def close(self) -> None:
        self._model = None


def _slots(segment: Segment, positions: IntArray) -> IntArray:
    """The cache's slots of new tokens."""
    table = np.asarray(segment.block_table, np.int32)
    slots: IntArray = table[positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE
    return slots
