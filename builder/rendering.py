"""Fills the text templates: config.pbtxt and the model's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.recipe import TEMPLATES_FOLDER

_STRING, _BOOL = "TYPE_STRING", "TYPE_BOOL"

INPUTS = (
    ("text_input", _STRING, 1),
    ("messages", _STRING, 1),
    ("stream", _BOOL, 1),
    ("sampling_parameters", _STRING, 1),
    ("exclude_input_in_output", _BOOL, 1),
    ("return_finish_reason", _BOOL, 1),
    ("return_cumulative_logprob", _BOOL, 1),
    ("return_logprobs", _BOOL, 1),
    ("return_num_input_tokens", _BOOL, 1),
    ("return_num_output_tokens", _BOOL, 1),
)
"""As Triton's vLLM backend, and ``messages`` (JSON), which may replace ``text_input``. All optional."""

OUTPUTS = (
    ("text_output", _STRING, -1),
    ("finish_reason", _STRING, -1),
    ("cumulative_logprob", "TYPE_FP32", -1),
    ("logprobs", _STRING, -1),
    ("num_input_tokens", "TYPE_UINT32", 1),
    ("num_output_tokens", "TYPE_UINT32", -1),
)


def render_pbtxt(name: str, title: str, backend: str) -> bytes:
    """config.pbtxt of a model."""
    return _render(
        "config.pbtxt.j2",
        {
            "name": name,
            "title": title.replace("\n", " "),
            "backend": backend,
            "inputs": [_tensor(*entry) for entry in INPUTS],
            "outputs": [_tensor(*entry) for entry in OUTPUTS],
        },
    )


def render_card(values: Mapping[str, Any]) -> bytes:
    """README.md of a version."""
    return _render("card.md.j2", values)


def _tensor(name: str, data_type: str, dim: int) -> dict[str, Any]:
    return {"name": name, "type": data_type, "dim": dim}


def _render(template: str, values: Mapping[str, Any]) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - the output is no HTML
        loader=FileSystemLoader(TEMPLATES_FOLDER),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    return environment.get_template(template).render(values).encode()
