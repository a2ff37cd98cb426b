"""The composition root: the only place that builds the daemon's objects and wires them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette

from contract.faults import Fault, FaultKind
from daemon.api_keys import digest, read_api_keys
from daemon.backends.base import ModelSpec
from daemon.backends.registry import contract_of
from daemon.backends.worker import WorkerBackend
from daemon.grpc_api.options import GrpcOptions
from daemon.grpc_api.server import GrpcServer, start_grpc
from daemon.http_api.app import (
    build_inference_app,
    build_management_app,
    build_merged_app,
    build_metrics_app,
)
from daemon.http_api.options import HttpOptions
from daemon.listeners import Bound, HttpListener, bind, bind_path
from daemon.observe.logs import RequestLog
from daemon.repository.registry import Registry, RegistryConfig
from daemon.service.daemon_service import DaemonService
from daemon.service.generate import ServiceLimits
from daemon.service.text_model import TextModel, prepare_text_model
from daemon.settings import MsOptions, Settings


class Daemon:
    """Everything one daemon consists of. ``listen``, ``load_startup_models``, ..., ``stop``.

    Parameters
    ----------
    control_token: accepted as an API key on every port, so that the daemon's own commands get in.
    request_stop: called with whether to drain when the management port is told to stop.
    """

    def __init__(
        self, settings: Settings, *, control_token: str, request_stop: Callable[[bool], None]
    ) -> None:
        self._settings = settings
        self._request_stop = request_stop
        self._started = time.time()
        self._keys = _key_digests(settings, control_token)
        self._service = _build_service(settings)
        self._listeners: list[HttpListener] = []
        self._grpc: GrpcServer | None = None
        self._ports: dict[str, Bound] = {}

    async def listen(self, control_path: Path) -> None:
        """Open every port. Until the models are ready, requests are told so. Raises ``Fault``.

        ``control_path``: a socket for the daemon's own commands where the management port is off.
        """
        self._ports = _bind_all(self._settings)
        if self._settings.management_port is None:
            with contextlib.suppress(OSError):
                self._ports["control"] = bind_path("control", control_path)
        for names in _by_socket(self._ports):
            listener = HttpListener(self._ports[names[0]], self._app(names))
            self._listeners.append(listener)
            await listener.start()
        if self._settings.grpc_port is not None:
            self._grpc = await start_grpc(self._service, self._grpc_options())

    async def load_startup_models(self) -> None:
        """Load the models that the settings name. Raises ``Fault`` if one fails and that is to count."""
        wanted = [_model_name(name) for name in self._settings.model]
        faults = await self._service.start(wanted or None)
        if faults and self._settings.exit_on_error:
            raise _start_fault(faults)

    def progress(self) -> list[dict[str, Any]]:
        """Every model with its state and how far it has loaded."""
        return [
            {
                "name": status.name,
                "version": status.version,
                "state": str(status.state),
                "progress": status.progress,
                "text": status.progress_text,
                "reason": status.reason,
            }
            for status in self._service.models()
        ]

    def addresses(self) -> dict[str, Any]:
        """Where each plane listens; ``None`` for those that are off."""
        urls: dict[str, Any] = {name: bound.url for name, bound in self._ports.items()}
        grpc = f"{self._settings.host}:{self._grpc.port}" if self._grpc else None
        return {"http": None, "management": None, "metrics": None} | urls | {"grpc": grpc}

    def status(self) -> dict[str, Any]:
        """Facts of the process, for the management port."""
        return {
            "version": mindport_version(),
            "pid": os.getpid(),
            "started": self._started,
        } | self.addresses()

    async def engines(self) -> dict[tuple[str, str], Any]:
        """What each loaded version's engine is doing, JSON-ready."""
        stats = await self._service.engine_stats()
        return {key: msgspec.to_builtins(one) for key, one in stats.items()}

    def stop_from_management(self, *, drain: bool) -> None:
        self._request_stop(drain)

    async def stop(self, drain_s: float) -> None:
        """Unready at once; running requests get ``drain_s`` seconds; then everything goes."""
        self._service.begin_stop()
        grpc, self._grpc = self._grpc, None
        if grpc is not None:
            await asyncio.gather(self._service.stop(drain_s), grpc.stop(drain_s))
        else:
            await self._service.stop(drain_s)
        while self._listeners:
            await self._listeners.pop().stop()

    def _app(self, names: list[str]) -> Starlette:
        options = self._http_options()

        def management() -> Starlette:
            return build_management_app(self._service, options, _Control(self))

        build: dict[str, Callable[[], Starlette]] = {
            "http": lambda: build_inference_app(self._service, options),
            "management": management,
            "control": management,
            "metrics": lambda: build_metrics_app(self._service.metrics_page),
        }
        apps = [build[name]() for name in names]
        return apps[0] if len(apps) == 1 else build_merged_app(apps, options)

    def _http_options(self) -> HttpOptions:
        return HttpOptions(
            version=mindport_version(),
            max_body_bytes=self._settings.max_body_mb << 20,
            api_keys=self._keys,
            generate_flavour=self._settings.generate_flavour,
            restrict_model_control=self._settings.restrict_model_control,
        )

    def _grpc_options(self) -> GrpcOptions:
        return GrpcOptions(
            host=self._settings.host,
            port=self._settings.grpc_port or 0,
            version=mindport_version(),
            api_keys=self._keys,
            restrict_model_control=self._settings.restrict_model_control,
        )


class _Control:
    """What the management port may do."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def status(self) -> dict[str, Any]:
        return self._daemon.status()

    async def engines(self) -> dict[tuple[str, str], Any]:
        return await self._daemon.engines()

    def stop(self, *, drain: bool) -> None:
        self._daemon.stop_from_management(drain=drain)


def mindport_version() -> str:
    try:
        return version("mindport")
    except PackageNotFoundError:
        return "0+source"


def _key_digests(settings: Settings, control_token: str) -> tuple[str, ...]:
    if settings.api_key_file is None:
        return ()
    return (*sorted(read_api_keys(settings.api_key_file)), digest(control_token))


def _build_service(settings: Settings) -> DaemonService:
    config = RegistryConfig(
        repositories=settings.repository,
        default_model=settings.default_model,
        threads=settings.thread_count,
        backend_options={"ms": _ms_options(settings.ms, settings.trust_model_code)},
        drain_s=settings.drain_timeout_s,
    )
    registry: Registry[TextModel] = Registry(
        config, functools.partial(_make_backend, settings.worker_timeout_s), prepare_text_model
    )
    limits = ServiceLimits(
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        timeout_s=settings.request_timeout_s,
    )
    return DaemonService(registry, limits, RequestLog(with_prompts=settings.log_prompts))


def _make_backend(patience_s: float, spec: ModelSpec) -> WorkerBackend:
    contract_of(spec.backend)
    return WorkerBackend(patience_s=patience_s)


def _ms_options(options: MsOptions, trust_model_code: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dtype": options.dtype,
        "head_dtype": options.head_dtype,
        "kv_dtype": options.kv_dtype,
        "activation_dtype": options.activation_dtype,
        "max_sequences": options.max_sequences,
        "max_rows": options.max_rows,
        "prefill_slowdown": options.prefill_slowdown,
        "prompt_lookup": options.prompt_lookup,
        "allow_nonfinite": options.allow_nonfinite,
        "device": options.device,
        "packed_cache": str(options.packed_cache.absolute()) if options.packed_cache else None,
        "trust_model_code": trust_model_code,
    }
    if options.kv_cache_mb is not None:
        values["kv_cache_bytes"] = options.kv_cache_mb << 20
    return values


def _model_name(text: str) -> str:
    name, _, number = text.partition("@")
    if not name or (number and not number.isdigit()):
        message = f"model {text!r}: write NAME or NAME@VERSION"
        raise Fault(FaultKind.INVALID_CONFIG, message, "daemon start --model telechat2_tiny")
    return text


def _bind_all(settings: Settings) -> dict[str, Bound]:
    """A socket for each plane that is on; planes with the same address share one."""
    wanted = {
        "http": (settings.host, settings.http_port),
        "management": (settings.management_host, settings.management_port),
        "metrics": (settings.management_host, settings.metrics_port),
    }
    bound: dict[str, Bound] = {}
    for name, (host, port) in wanted.items():
        if port is None:
            continue
        shared = next((other for other in bound.values() if port and other.port == port), None)
        bound[name] = shared or bind(f"{name}_port", host, port)
    return bound


def _by_socket(ports: dict[str, Bound]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, bound in ports.items():
        groups.setdefault(id(bound), []).append(name)
    return list(groups.values())


def _start_fault(faults: list[Fault]) -> Fault:
    lines = "\n".join(f"  {fault}" for fault in faults)
    count = len(faults)
    message = f"{count} model{'s' if count != 1 else ''} could not be loaded:\n{lines}"
    hint = "mend or remove them, name others with --model, or start without them: --no-exit-on-error"
    return Fault(FaultKind.START_FAILED, message, hint, {"faults": [fault.to_dict() for fault in faults]})
