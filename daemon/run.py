"""The daemon's process: from valid settings to exit code, with signals and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

from contract.faults import Fault, FaultKind
from daemon.app import Daemon
from daemon.notify import StartReport
from daemon.settings import Settings
from daemon.state import StateDirectory

log = logging.getLogger("mindport.daemon")

PROGRESS_INTERVAL_S = 0.1


def run(settings: Settings, report: StartReport, announce: Callable[[dict[str, Any]], None]) -> int:
    """Serve until told to stop.

    Parameters
    ----------
    report: told of progress, readiness or the fault.
    announce: called once with the daemon's addresses when every startup model is ready.

    Returns
    -------
    The exit code; a start that fails has told ``report`` why.
    """
    state = StateDirectory(settings.state_path)
    try:
        state.acquire()
        return asyncio.run(_serve(settings, state, report, announce))
    except Fault as fault:
        log.error("start failed: %s", fault.message)
        report.failed(fault.to_dict())
        return fault.exit_code
    finally:
        state.release()


async def _serve(
    settings: Settings, state: StateDirectory, report: StartReport, announce: Callable[[dict[str, Any]], None]
) -> int:
    stop, hurry = _stop_on_signals()
    token = secrets.token_urlsafe(24)
    daemon = Daemon(settings, control_token=token, request_stop=stop.set)
    try:
        await daemon.listen()
        info = daemon.addresses() | {
            "pid": os.getpid(),
            "started": time.time(),
            "log": str(state.log_path),
            "token": token,
        }
        state.write(info | {"ready": False})
        if not await _load(daemon, settings, stop, report):
            return Fault(FaultKind.CANCELLED, "stopped while starting").exit_code
        state.write(info | {"ready": True})
        announce(info)
        report.ready(info)
        await stop.wait()
        report.stopping()
    finally:
        await _drain(daemon, settings.drain_timeout_s, hurry)
    return 0


def _stop_on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events of the first signal, which drains, and of the second, which cuts the drain short."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, hurry


async def _drain(daemon: Daemon, timeout_s: float, hurry: asyncio.Event) -> None:
    draining = asyncio.create_task(daemon.stop(timeout_s))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not draining.done():
        draining.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await draining
        await daemon.stop(0.0)
    elif error := draining.exception():
        raise error


async def _load(daemon: Daemon, settings: Settings, stop: asyncio.Event, report: StartReport) -> bool:
    """Load the startup models; ``False`` when told to stop meanwhile. Raises ``Fault``."""
    loading = asyncio.create_task(daemon.load_startup_models())
    stopping = asyncio.create_task(stop.wait())
    deadline = time.monotonic() + settings.start_timeout_s
    try:
        while not loading.done():
            await asyncio.wait(
                {loading, stopping}, timeout=PROGRESS_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
            )
            report.progress(daemon.progress())
            if stopping.done():
                return False
            if time.monotonic() > deadline:
                message = f"the models were not ready within {settings.start_timeout_s:g} s"
                raise Fault(FaultKind.START_FAILED, message, "raise --start-timeout-s, or see daemon logs")
        loading.result()
        return True
    finally:
        for task in (loading, stopping):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Fault):
                await task
