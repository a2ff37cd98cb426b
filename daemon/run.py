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

from contract.faults import EXIT_CODES, Fault, FaultKind
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
        # Never released: the lock tells of this process until its very end.
        state.acquire()
        state.write({"pid": os.getpid(), "ready": False})
        return asyncio.run(_serve(settings, state, report, announce))
    except Fault as fault:
        log.error("start failed: %s", fault.message)
        report.failed(fault.to_dict())
        return fault.exit_code
    except Exception as error:
        log.exception("the daemon failed")
        defect = Fault(FaultKind.INTERNAL, f"the daemon failed: {error!r}", f"see {state.log_path}")
        report.failed(defect.to_dict())
        return defect.exit_code


async def _serve(
    settings: Settings, state: StateDirectory, report: StartReport, announce: Callable[[dict[str, Any]], None]
) -> int:
    orders = _Orders()
    token = secrets.token_urlsafe(24)
    daemon = Daemon(settings, control_token=token, request_stop=orders.from_management)
    info: dict[str, Any] = {"pid": os.getpid(), "started": time.time(), "log": str(state.log_path)}
    try:
        await daemon.listen(state.socket_path)
        info |= daemon.addresses() | {"token": token}
        state.write(info | {"ready": False})
        log.info("listening, pid %d: %s", os.getpid(), _listed(daemon.addresses()))
        if not await _load(daemon, settings, orders.stop, report):
            report.failed(Fault(FaultKind.CANCELLED, "the daemon was stopped while it started").to_dict())
            return orders.exit_code
        state.write(info | {"ready": True})
        announce(info)
        report.ready(info)
        log.info("ready")
        await orders.stop.wait()
    finally:
        report.stopping()
        with contextlib.suppress(Fault):
            state.write(info | {"ready": False, "stopping": True})
        if orders.stop.is_set():
            log.info("stopping: running requests get %g s", settings.drain_timeout_s)
        await _drain(daemon, settings.drain_timeout_s, orders.hurry)
        log.info("stopped")
    return 0


class _Orders:
    """What signals and the management port say: a second signal cuts the drain short."""

    def __init__(self) -> None:
        self.stop, self.hurry = asyncio.Event(), asyncio.Event()
        self.exit_code = 0
        """Of a start that was stopped: to end at SIGTERM is no failure."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup ignores SIGHUP for us.
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    def from_management(self, drain: bool) -> None:
        self.stop.set()
        if not drain:
            self.hurry.set()

    def _signalled(self, number: int) -> None:
        if number == signal.SIGINT:
            self.exit_code = EXIT_CODES[FaultKind.CANCELLED]
        (self.hurry if self.stop.is_set() else self.stop).set()


def _listed(addresses: dict[str, Any]) -> str:
    return ", ".join(f"{name} {address}" for name, address in addresses.items() if address)


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
