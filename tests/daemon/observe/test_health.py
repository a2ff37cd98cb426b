"""Ready is the time between start and stop, while the models are."""

from __future__ import annotations

import pytest

from daemon.observe.health import Health


def is_ready(*, started: bool, stopping: bool, models: bool) -> bool:
    health = Health(lambda: models)
    if started:
        health.started()
    if stopping:
        health.stopping()
    assert health.live
    return health.ready


def test_ready() -> None:
    assert is_ready(started=True, stopping=False, models=True)


@pytest.mark.parametrize(
    ("started", "stopping", "models"), [(False, False, True), (True, True, True), (True, False, False)]
)
def test_not_ready(started: bool, stopping: bool, models: bool) -> None:
    assert not is_ready(started=started, stopping=stopping, models=models)
