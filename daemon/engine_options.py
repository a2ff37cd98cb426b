"""What the embedded engine can be told, and what it does otherwise: the settings' defaults are these."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
HeadDtype = Literal["auto", "stored", "int8"]
KvDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
ActivationDtype = Literal["auto", "int8", "int7"]
ComputeDevice = Literal["cpu", "ascend"]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From the ``serving`` block of a model or the daemon's settings, which has the last word."""

    context_len: Positive | None = None
    """Prompt and answer together; default and most: the model's ``limits.max_seq_len``."""
    max_sequences: Positive = 32
    """Sequences computed in one step."""
    kv_cache_bytes: Positive | None = None
    """Default: all sequences at full length, but at most a share of the memory that the weights leave."""
    num_blocks: Positive | None = None
    """KV cache in blocks; goes before ``kv_cache_bytes``."""
    prefix_cache: bool = True
    """Sequences with the same beginning share its keys and values."""
    prefill_slowdown: Annotated[float, msgspec.Meta(gt=1.0)] = 1.7
    """How many times as long all but one step in 100 may take when reading prompts beside answers."""
    prompt_lookup: Annotated[int, msgspec.Meta(ge=0, le=32)] = 0
    """Tokens guessed at a time from what followed the same tokens before; 0 is off."""
    max_rows: Positive = 512
    """Tokens of one step."""
    max_logit_rows: Positive = 64
    dtype: Dtype = "auto"
    """Of the weights in memory: ``auto`` (as stored), a float type, or ``int8`` or ``int4``."""
    head_dtype: HeadDtype = "auto"
    """Of a head stored in floats: ``stored`` as they are, ``int8``, or ``auto``: int8 in quantized models."""
    kv_dtype: KvDtype = "auto"
    """Of keys and values in memory: ``float32``, ``bfloat16``, ``float16``, ``int8``, or ``auto``, the float
    type of the weights."""
    activation_dtype: ActivationDtype = "auto"
    """To what activations are rounded before they meet int8 weights: ``int8``, ``int7``, or ``auto``:
    int7 on processors that multiply bytes in pairs only (AVX2 without VNNI), where it is a quarter faster."""
    device: ComputeDevice = "cpu"
    """``ascend`` is by way of mindformers, and was never run."""
    allow_nonfinite: bool = False
    """Serve weights that are infinite or NaN."""
    packed_cache: str | None = None
    """Folder in which packed weights are kept; a model directory does not choose it."""
    trust_model_code: bool = False
    """Run a network file that is not on the list of known ones."""


DEFAULTS = EngineOptions()
