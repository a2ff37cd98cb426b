"""A default of the engine is the same for the settings, the backend, the engine and the runner."""

from __future__ import annotations

import dataclasses

from daemon.app import _ms_options
from daemon.backends.ms.engine import EngineSettings
from daemon.backends.ms.runner import RunnerOptions
from daemon.backends.options import read_options
from daemon.engine_options import DEFAULTS, EngineOptions
from daemon.settings import MsOptions


def test_settings_left_alone_change_nothing() -> None:
    given = _ms_options(MsOptions(), trust_model_code=False)
    assert read_options(EngineOptions, given, "ms") == DEFAULTS


def test_the_engine_and_the_runner_agree() -> None:
    for made in (EngineSettings(context_len=1), RunnerOptions(num_blocks=1)):
        fields = {field.name for field in dataclasses.fields(made)} & set(EngineOptions.__struct_fields__)
        fields -= {"context_len", "num_blocks"}
        assert len(fields) >= 4
        assert {name: getattr(made, name) for name in fields} == {
            name: getattr(DEFAULTS, name) for name in fields
        }
